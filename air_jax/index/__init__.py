"""A folder of pictures, or vectors, becomes an index: a searchable folder.

In: image files and a net, or codes of another model. Out: an index with codes, thumbnails and a
catalogue. `build` makes an index of pictures and updates it, `vector_files` one of vectors; both
write it by `index_writer`. `image_index` opens it, `catalogue` is its SQLite table, `milvus_index`
keeps its codes in Milvus, `identity` finds the ids that images had before. `data` lists and decodes
the files.
Read `build` first.
"""
