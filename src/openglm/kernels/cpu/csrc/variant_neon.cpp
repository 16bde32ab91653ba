#define OPS ops_neon
#include "simd_neon.h"
#include "variant.h"
