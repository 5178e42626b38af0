"""Every key, with the reading of the paper that it stands for. Other configs change a few."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # draws the initialisation, the order of images, and the corruption
    # Leave a trace of a few training steps in the work directory's profile/.
    config.profile = False

    config.data = data = ml_collections.ConfigDict()
    data.name = "cifar100"  # cifar100, digits, arrays, folder
    # Where cifar100 was prepared; the .npz file of arrays; the folder of pictures of folder.
    data.dir = ""
    # Section IV.1: 100 random images of each class are queries ("paper"). "official" takes the
    # data set's test part, of a folder a tenth of each class. Both leave 50,000 of CIFAR-100 as
    # database and training set.
    # "validation" draws queries as "paper" does, but from what "official" leaves: to choose by.
    data.split = "paper"
    data.split_seed = 0
    data.queries_per_class = 100
    # Side of the images: whole pixels are averaged down to it; 0 = as they are. The pictures of a
    # folder are cropped and resized to it, as `air_jax.index` does.
    data.size = 0
    # For small machines: only so many random images of each class are kept on either side of the
    # split; 0 = all.
    data.keep_database_per_class = 0
    data.keep_queries_per_class = 0
    data.train_images = 0  # train on so many of the database's images; 0 = all of them
    data.loader = "auto"  # resident, tfdata, host; auto = resident where it fits

    config.model = model = ml_collections.ConfigDict()
    model.encoder = "paper"  # paper; conv, a plain convolutional net that widens (no decoder)
    # Of encoder conv: channels and blocks of each stage, pooling between stages; residual blocks
    # of two convolutions. ResNet-18's: (64, 128, 256, 512), (2, 2, 2, 2), True.
    model.widths = (32, 64, 128)
    model.blocks = (1, 2, 2)
    model.residual = False
    # Of encoder paper; `kernel` is of both.
    model.depth = 40  # convolutions and deconvolutions, half each
    model.width = 64  # the paper gives none; RED-Net's
    model.kernel = 3  # the paper gives none; RED-Net's
    model.code_dim = 128
    model.pool = True
    model.pools = 3  # how often at most: 32x32 maps become 4x4
    model.skip = "asymmetric"  # none, symmetric, asymmetric
    # Where asymmetric shortcuts land. "both" lets the decoder see the image around the code.
    model.skip_into = "encoder"
    model.code = "dense"  # how maps become the code: dense, pooled, conv
    model.norm = "none"  # the paper names none; batch, group
    model.input_residual = False  # RED-Net's shortcut from input to output

    config.train = train = ml_collections.ConfigDict()
    # reconstruction, the paper's; contrastive and coding_rate give random views (crops in other
    # colours) of an image the same embedding, and views of other images another.
    train.objective = "reconstruction"
    train.views = 4  # of each image
    train.view_size = 0  # side of the views in pixels; 0 = the images'
    train.view_area = (0.2, 0.55)  # smallest and largest share of the image that a view shows
    # "the number of iterations per batch is 20": read as 20 epochs. Literally: epochs = 1 and
    # steps_per_batch = 20.
    train.epochs = 20
    train.steps_per_batch = 1
    # "the unsupervised greedy training autoencoder": joint trains all layers at once; greedy first
    # trains pairs of convolution and deconvolution, outermost first, for a share of the steps.
    train.schedule = "joint"  # joint, greedy
    train.greedy_share = 0.5
    train.batch = 160  # "a minimum of 150 samples"; 160 divides over 2, 4, 8, 16, 32 devices
    train.optimizer = "sgd"  # sgd, the paper's; adamw
    train.learning_rate = 0.05  # the configs that train a net set their own
    train.lr_schedule = "cosine"  # constant, cosine
    train.warmup_steps = 100
    train.momentum = 0.9  # of AdamW its first moment's
    train.weight_decay = 0.0  # SGD: of all parameters; AdamW: of matrices, apart from the gradient
    train.clip_norm = 1.0  # of the gradient; 0 = none
    # What is computed in, also to encode: float32; tf32, float32 whose products an accelerator
    # rounds to TF32, on a CPU the same as float32; bfloat16. Parameters are float32.
    train.dtype = "float32"
    # Steps that the devices do in one call; 0 = by itself: an epoch on an accelerator, 1 on a CPU.
    # steps_per_call and remat change what is learnt by rounding only.
    train.steps_per_call = 0
    train.remat = False  # compute activations twice rather than keep them: less memory, more time
    train.corruption = "none"  # of the encoder's input: none, mask, noise
    train.corruption_amount = 0.0  # share of the 4x4 blocks masked, or the noise's deviation

    config.encode = encode = ml_collections.ConfigDict()
    # Images in one call; 0 = by itself: 512 on CPUs, 2,048 or what fits on each accelerator.
    encode.batch = 0
    # What is done to codes before they are compared: plain, nothing; whitened, principal components
    # of the training images' codes, each divided by its variance to a power, then unit length.
    encode.readout = "plain"
    encode.readout_dim = 128  # components kept
    encode.readout_power = 0.25
    encode.unit_length = True

    config.retrieval = retrieval = ml_collections.ConfigDict()
    # l2 (the paper's), standardised, cosine, inner_product: see `distances.for_metric`.
    retrieval.metric = "l2"
    retrieval.precision = "float32"  # or, on accelerators, bfloat16_3x
    # smt, the best codes without a net, takes minutes: add it.
    retrieval.baselines = ("random", "pixels", "pca", "kmeans", "untrained")

    config.feedback = feedback = ml_collections.ConfigDict()
    feedback.learners = ("none", "svc", "svc_linear", "svc_pseudo", "rocchio")
    feedback.rounds = 3
    feedback.marks_per_round = 20
    feedback.show = "best"  # uncertain: from round 2 on what the learner is least sure of
    # Of the learners' SVMs: smo, our own, all queries at once; sklearn, scikit-learn's SVC.
    feedback.solver = "smo"
    feedback.queries = 1000  # as many of each class; 0 = all
    feedback.seed = 0  # of the choice of queries, and of learners that draw

    config.report = report = ml_collections.ConfigDict()
    report.queries = 4  # shown in the figures
    report.learner = "svc"  # shown in the retrieval sheet

    config.log = log = ml_collections.ConfigDict()
    log.every_steps = 20  # a line in metrics.jsonl
    # A checkpoint is saved every so many minutes and at the end, while training goes on; at the end
    # of a line, so after every_steps steps at the earliest.
    log.checkpoint_minutes = 3.0
    log.checkpoint_steps = 0  # and after every so many steps; 0 = by time alone
    # Training never sees a label. Every so many steps a nearest-neighbour classifier of images of
    # the database tells how much the codes know of the classes, in probes.jsonl; 0 = never.
    log.probe_steps = 0
    log.tensorboard = False
    return config
