"""Images and their order.

In: the name of a data set and where it lies. Out: uint8 images [N, S, S, C] with labels [N]
(`datasets`), the database and the queries among them (`splits`), and batches of training images on
the devices (`loaders`). `rgb_conversion` makes 8-bit RGB of any picture that Pillow decoded.
TensorFlow is imported only here, by the functions that read or stream TFDS. Read `datasets` first.
"""
