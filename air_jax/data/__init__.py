"""Images and their order.

In: the name of a data set and where it lies. Out: uint8 images [N, S, S, C] with labels [N]
(`datasets`), the database and the queries among them (`splits`), and batches of training images on
the devices (`loaders`). Of people's own pictures, `image_files` lists the files of a folder,
`decoding` turns a file into pixels, with `rgb_conversion`, and `decode_pool` does so in several
processes. Training and the index share these, so that a picture has the same pixels in both.
TensorFlow is imported only here, by the functions that read or stream TFDS. Read `datasets` first.
"""
