#define OPS ops_avx512_vnni
#include "simd_avx512.h"
#include "variant.h"
