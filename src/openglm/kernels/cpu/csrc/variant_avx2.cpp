#define OPS ops_avx2
#include "simd_avx2.h"
#include "variant.h"
