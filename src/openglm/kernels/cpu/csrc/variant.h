// One instruction set's table of kernels; each variant_*.cpp defines OPS and is compiled with its own flags.
#pragma once
#include "attention.h"
#include "elementwise.h"
#include "linear.h"

namespace openglm {

const Ops* OPS() {
    static const Ops ops = {Simd::kName, prepare, linear, activate, rms_norm, layer_norm,
                            largest, exponentials, sum, sum_below, read, attend};
    return &ops;
}

}  // namespace openglm
