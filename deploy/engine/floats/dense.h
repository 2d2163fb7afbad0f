// What the convolutions in float32 have in common.
#pragma once
#include "../kernel.h"

// The outputs of n pixels and a block: the sums, `step` floats apart, with shift, the other tensor (or null) and ReLU.
void finish(const Layer& layer, int block, int n, const float* sums, int step, const float* other, float* y);
