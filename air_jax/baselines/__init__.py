"""What a net has to beat, made without one.

In: uint8 images [N, S, S, C]. Out: codes [N, D] float32, and losses of simple reconstructions.
`baseline_codes` names them all; `pca` is the linear one, `kmeans` and `manifold_transform` describe
an image by its `patches`, and `losses` are those of the mean image and of PCA. Read
`baseline_codes` first.
"""
