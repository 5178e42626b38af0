"""A folder of pictures, or vectors, becomes an index: a searchable folder.

In: image files and a net, or codes of another model. Out: an index with codes, thumbnails and a
catalogue. `build` makes an index of pictures and updates it, `vector_files` one of vectors; both
write it by `index_writer`. `image_index` opens it, `catalogue` is its SQLite table, `milvus_index`
keeps its codes in Milvus. `image_files` lists the files of a folder, `identity` finds the ids that
images had before, `decoding` turns files into pixels, `decode_pool` does so in several processes.
Read `build` first.
"""
