"""Packaging of featuremill. Ranges live here; the exact versions that are tested live in constraints.txt."""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
KERNEL = "transforms/engines/winograd"


class BuildKernel(build_ext):
    """Compiles the kernel of the engine winograd; where it can't, says so in one line, and goes on without it."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            cause = " ".join(str(error).split())
            cure = "install GCC 11 or Clang 14, or newer"
            self.warn(f"no engine winograd: its kernel can't be compiled here ({cause}); {cure}")


# Each source says which instructions it may use: the options are the same for all. -ffp-contract=off: see kernel.hpp.
kernel = Extension(
    "transforms.engines.winograd._library",
    sources=[f"{KERNEL}/{name}.cpp" for name in ("library", "portable", "avx2", "avx512")],
    depends=[f"{KERNEL}/{name}.hpp" for name in ("abi", "kernel", "matrices")],
    language="c++",
    # It is no module: ctypes finds its functions.
    extra_compile_args=[
        *("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions"),
        # GCC 12 takes its own intrinsics for what is not initialised.
        *("-fno-rtti", "-fvisibility=hidden", "-g0", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ],
    optional=True,
)

# Files of other networks: read by the first, computed by the second.
ONNX = ["onnx>=1.17", "onnxruntime>=1.20"]
TEST = [
    *ONNX,
    "hypothesis>=6.100",
    "playwright>=1.50",
    "polars>=1.20",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
]

DELTA, ICEBERG = ["deltalake>=1.0"], ["pyiceberg>=0.11", "sqlalchemy>=2.0"]

setup(
    name="featuremill",
    version="0.1.0",
    description="Batch feature extraction with frozen VGG networks: image shards in, Parquet features out",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    # Named one by one: `pipeline` and `transforms` are generic names, and a search for packages would
    # sweep up whatever else lies beside them.
    packages=[
        "featuremill",
        "pipeline",
        "pipeline.cli",
        "pipeline.demo",
        "pipeline.end_to_end",
        "pipeline.exploration",
        "pipeline.extraction",
        "pipeline.maintenance",
        "pipeline.maps",
        "pipeline.prediction",
        "pipeline.rendering",
        "pipeline.runners",
        "pipeline.training",
        "transforms",
        "transforms.embedding",
        "transforms.end_to_end",
        "transforms.engines",
        "transforms.engines.winograd",
        "transforms.evaluation",
        "transforms.heads",
        "transforms.images",
        "transforms.labels",
        "transforms.network",
        "transforms.parquet",
        "transforms.predictors",
        "transforms.rows",
        "transforms.shards",
        "transforms.similarity",
        "transforms.store",
    ],
    ext_modules=[kernel],
    cmdclass={"build_ext": BuildKernel},
    package_data={
        **{package: ["py.typed"] for package in ("featuremill", "pipeline", "transforms")},
        "pipeline.rendering": ["templates/*"],
    },
    install_requires=[
        "apache-beam>=2.77,<3",
        "bracex>=2.4",
        "click>=8.1",
        "duckdb>=1.5",
        "google-crc32c>=1.5",
        "h5py>=3.11",
        "jinja2>=3.1",
        "keras>=3.10,<4",
        "matplotlib>=3.9",
        # Where it has wheels; elsewhere the engine keras does the work.
        'ncnn>=1.0.20250503; platform_machine in "x86_64 AMD64 arm64 aarch64"',
        "numpy>=1.26",
        "pillow>=11.3",
        "pillow-heif>=1.3",
        "plotly>=6.0",
        "protobuf>=4.25",
        "psutil>=5.9",
        "pyarrow>=16.1",
        "rich>=13.7",
        "scikit-learn>=1.5",
        "tensorflow>=2.21,<3",
        "threadpoolctl>=3.1",
        "umap-learn>=0.5.7",
    ],
    extras_require={
        "test": TEST,
        "dev": [*TEST, "ruff>=0.8"],
        # What `make test-clusters test-stores` needs beside it: Dataflow's job builder, and a server that speaks S3.
        "distributed": ["apache-beam[gcp]", "boto3>=1.35", "flask>=3.0", "flask-cors>=5.0", "moto[s3]>=5.0"],
        # What `make test-elsewhere` needs beside it: the readers of docs/query.md, and what Keras exports by. From
        # cryptography on it is what Embedding Atlas needs here; its PyTorch, only there for models of its own, would be
        # gigabytes.
        "elsewhere": [
            *DELTA,
            *ICEBERG,
            "datasets>=4.0",
            "faiss-cpu>=1.10",
            "lancedb>=0.25",
            "pandas>=2.2",
            "pyspark>=4.0",
            "tensorboard>=2.19",
            "tf2onnx>=1.17",
            "cryptography>=45",
            "fastapi>=0.120",
            "inquirer>=3.0",
            "platformdirs>=4.0",
            "uvicorn>=0.40",
            'uvloop>=0.22; sys_platform != "win32"',
            "websockets>=16.0",
        ],
        # What `featuremill register` needs.
        "delta": DELTA,
        "iceberg": ICEBERG,
        # What Dataflow needs; stores need nothing more.
        "gcp": ["apache-beam[gcp]"],
        "onnx": ONNX,
        "gpu": ["tensorflow[and-cuda]>=2.21,<3; sys_platform == 'linux'"],
    },
    entry_points={"console_scripts": ["featuremill = featuremill.__main__:main"]},
)
