// The step of an activation basis (basis_activation.update_basis).

#include "basis.h"

namespace {

// As in basis.py and basis_activation.py.
constexpr double MOMENTUM = 0.9, VARIANCE_FLOOR = 1e-3;
enum Weighting { EQUAL, INVERSE_VARIANCE, MEDIAN };

// The sums of `quantize_and_sum` by channel: S rows, each of one number a channel.
struct ChannelSums {
    int bits;
    int64_t channels, size;  // size: values a channel
    std::vector<double> totals;

    ChannelSums(const float* sums, int64_t blocks, int64_t columns, int64_t channels,
                int64_t size, int bits)
        : bits(bits), channels(channels), size(size), totals((2 + bits + pairs(bits)) * channels) {
        const int64_t count = 2 + bits + pairs(bits);
        parallel_for(count, count * blocks * columns, [&](int64_t s) {
            double* to = row(s);
            const float* from = sums + s * blocks * columns;
            for (int64_t i = 0; i < blocks * columns / channels; i++, from += channels)
                for (int64_t c = 0; c < channels; c++) to[c] += from[c];
        });
    }

    double* row(int64_t s) { return totals.data() + s * channels; }

    void add(int64_t c, double weight, FitSums& to) {
        to.sum += weight * row(0)[c];
        to.count += weight * size;
        for (int k = 0; k < bits; k++) to.products[k] += weight * row(2 + k)[c];
        for (int p = 0; p < pairs(bits); p++) to.counts[p] += weight * row(2 + bits + p)[c];
    }
};

// One weight a channel, of mean 1 (basis_activation.channel_weights).
std::vector<double> channel_weights(ChannelSums& sums) {
    std::vector<double> weights(sums.channels);
    double mean_variance = 0, mean_weight = 0;
    for (int64_t c = 0; c < sums.channels; c++) {
        const double mean = sums.row(0)[c] / sums.size;
        weights[c] = std::max(sums.row(1)[c] / sums.size - mean * mean, 0.0);
        mean_variance += weights[c] / sums.channels;
    }
    for (double& weight : weights) {
        weight = weight > 0 ? 1 / (weight + VARIANCE_FLOOR * mean_variance + 1e-30) : 0.0;
        mean_weight += weight / sums.channels;
    }
    for (double& weight : weights) weight /= std::max(mean_weight, 1e-30);
    return weights;
}

// The lower median of the channels' own fits, number by number.
void median_fit(ChannelSums& sums, const float* v, bool is_signed, float* fit) {
    const int bits = sums.bits;
    std::vector<float> fits(bits * sums.channels);
    for (int64_t c = 0; c < sums.channels; c++) {
        FitSums channel;
        float found[MAX_BITS];
        sums.add(c, 1, channel);
        fit_ordered(channel, v, bits, is_signed, found);
        for (int k = 0; k < bits; k++) fits[k * sums.channels + c] = found[k];
    }
    for (int k = 0; k < bits; k++) {
        auto begin = fits.begin() + k * sums.channels, middle = begin + (sums.channels - 1) / 2;
        std::nth_element(begin, middle, begin + sums.channels);
        fit[k] = *middle;
    }
    order(fit, bits);
}

}  // namespace

// weighting: a Weighting. updated (bits): the next basis; v itself where the batch is not finite.
extern "C" void update_basis(const float* sums, int64_t blocks, int64_t columns, int64_t channels,
                             int64_t size, const float* v, int bits, int is_signed, int weighting,
                             float* updated, uint8_t* not_finite) {
    ChannelSums by_channel(sums, blocks, columns, channels, size, bits);
    bool finite = true;
    for (int64_t c = 0; c < channels; c++) finite &= std::isfinite(by_channel.row(0)[c]);
    float fit[MAX_BITS] = {};
    if (weighting == MEDIAN) {
        if (finite) median_fit(by_channel, v, is_signed, fit);
    } else {
        std::vector<double> weights(channels, 1.0);
        if (weighting == INVERSE_VARIANCE) weights = channel_weights(by_channel);
        FitSums all;
        for (int64_t c = 0; c < channels; c++) by_channel.add(c, weights[c], all);
        fit_ordered(all, v, bits, is_signed, fit);
    }
    for (int k = 0; k < bits; k++) finite &= std::isfinite(fit[k]);
    for (int k = 0; k < bits; k++)
        updated[k] = finite ? float(MOMENTUM) * v[k] + float(1 - MOMENTUM) * fit[k] : v[k];
    *not_finite = !finite;
}
