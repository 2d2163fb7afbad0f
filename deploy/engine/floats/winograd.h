// Float32 convolutions of few input channels with fewer products, by Winograd's method along their rows.
#pragma once
#include <memory>
#include <vector>

#include "../kernel.h"

// Makes layer.weight and layer.columns, if the method is worth while for this layer; else leaves both empty.
void prepare_winograd(Layer&);

// Rows of the output of a layer that prepare_winograd prepared. Each thread has its own.
class WinogradRows {
    const Layer& layer;
    const float* x;
    std::unique_ptr<float[]> line;   // a row of the padded input, with zeros behind it
    std::unique_ptr<float[]> ring;   // the transformed rows that a kernel covers
    std::vector<const float*> rows;  // these rows, for the output row that is made
    int made = 0;                    // the first row of the padded input that is not in the ring

    void transform(int row);
    float* in_ring(int row) const;

  public:
    // x: the input with its zero padding. Allocates nothing where the layer is not prepared.
    WinogradRows(const Layer& layer, const float* x);
    // Row oy of the output to y. other: that row of the tensor that is added, or null. Rows must come in rising order.
    void make(int oy, const float* other, float* y);
};
