"""Before any test: compiled kernels come from the cache."""

from themis_triton.compilation import use_kernel_cache

use_kernel_cache()
