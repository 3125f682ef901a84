// The sum of param^2 of one tensor's step, by tiles: measured, or carried from the step before.
#pragma once

#include <algorithm>
#include <cstddef>

#include "adafactor.hpp"
#include "engine/carried.hpp"
#include "engine/scratch.hpp"

namespace adafactor {

class ParamSquares {
public:
    explicit ParamSquares(const Tensor& tensor)
        : is_unknown_(tensor.hyper.scale_parameter),
          carried_(is_unknown_ ? tensor.carried : nullptr) {}

    // Whether RMS(param) is still to be found.
    bool is_unknown() const { return is_unknown_; }

    void allocate(const Array& param, std::size_t n_tiles, Scratch& for_measure) {
        sums_ = for_measure.take<SumWords>(n_tiles);
        if (carried_ != nullptr && is_unknown_) carried_->expect(param, n_tiles);
    }

    // Keeps what measure has summed in other memory.
    void keep(std::size_t n_tiles, Scratch& own) {
        sums_ = std::copy_n(sums_, n_tiles, own.take<SumWords>(n_tiles)) - n_tiles;
    }

    // Where measure puts the sum of a tile; null if it need not be summed.
    SumWords* to_measure(std::size_t tile) {
        const bool is_carried = carried_ != nullptr && !carried_->is_unknown(tile);
        return is_unknown_ && !is_carried ? &sums_[tile] : nullptr;
    }

    // The sums of all tiles, after measure. sum_all() measures every tile anew.
    template <class SumAll>
    const SumWords* complete(const SumAll& sum_all) {
        if (carried_ != nullptr && !carried_->complete(sums_)) sum_all();
        is_unknown_ = false;
        return sums_;
    }

    // apply comes between these two. It puts the sum of each tile where written() points, if that
    // is not null.
    void begin_apply() { written_ = carried_ != nullptr ? carried_->written() : nullptr; }
    SumWords* written(std::size_t tile) const { return written_ ? &written_[tile] : nullptr; }
    void end_apply() {
        if (carried_ != nullptr) carried_->remember();
    }

private:
    bool is_unknown_;
    CarriedSquares* carried_;      // null if nothing is carried
    SumWords* sums_ = nullptr;     // (n_tiles,), until resolve is done
    SumWords* written_ = nullptr;  // (n_tiles,), for the next step
};

}  // namespace adafactor
