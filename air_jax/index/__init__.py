"""A folder of pictures, or vectors, becomes an index: a searchable folder.

In: image files or vectors, and a net. Out: an index with codes, thumbnails and a catalogue.
`build` makes and updates it, `image_index` opens it, `catalogue` is its SQLite table, `decoding`
turns files into pixels. Read `build` first.
"""
