#define OPS ops_avx512_bf16
#include "simd_avx512.h"
#include "variant.h"
