// A factored tensor's step: what its phases share. measure, resolve and apply have a file each.
#pragma once

#include "engine/clip_and_scale.hpp"
#include "engine/geometry.hpp"
#include "engine/param_squares.hpp"
#include "engine/partial_sums.hpp"
#include "engine/second_moment.hpp"
#include "engine/tensor_step.hpp"
#include "engine/two_words.hpp"
#include "engine/walk_choice.hpp"

namespace adafactor {

// The new running means of each matrix, until apply puts them into the state: (n_matrices, rows)
// and (n_matrices, cols).
struct RunningMeans {
    double *row, *col;
};

// The running means before the step, as doubles: the state's own, or copies of its floats.
struct OldMeans {
    const double *row, *col;
};

// What resolve works with, until it is done.
struct Resolving {
    SecondMoment* moments;  // (n_matrices,)
    double* mean_u_sq;      // (n_matrices,), of the matrix or of all
    SumWords* tile_u_sq;    // (n_matrices, n_tiles)
};

// What resolve decides for apply.
struct Resolved {
    bool separable = false;  // the form of struct Factors
    bool wide = true;
    double *row_factor, *col_factor;  // (n_matrices, rows), (n_matrices, cols); floats unless wide
    Descent* descent;                 // (n_matrices,)
};

class FactoredStep final : public TensorStep {
public:
    FactoredStep(const Tensor& tensor, TensorReport& report, const KernelTable& kernels,
                 Place place)
        : TensorStep(tensor, report, kernels),
          param_squares_(tensor),
          geometry_(tensor, param_squares_.is_unknown()),
          measured_(Sweep::measure, place),
          summed_(Sweep::sum_param, place),
          applied_(Sweep::apply, place) {}

    void allocate(Scratch& for_step) override;
    void allocate_sums(Scratch& for_measure) override;
    void keep_sums(Scratch& own) override;
    std::size_t scratch_size() const override {
        return geometry_.sums_size() + geometry_.copies_size();
    }

    std::size_t n_measure_tasks() const override {
        return geometry_.n_chunks * geometry_.measure_turns;
    }
    void measure(std::size_t task, char* scratch) override;

    Fault resolve(const Team& team, bool propagate) override;

    std::size_t n_apply_tasks() const override {
        return geometry_.n_chunks * geometry_.apply_turns;
    }
    void begin_apply() override;
    void apply(std::size_t task, char* scratch) override;
    void end_apply() override;

private:
    class Resolver;
    friend class ShardedFactored;

    void allocate_resolving(Scratch& scratch);

    // factored_measure.cpp
    void measure_group(std::size_t chunk, std::size_t group, char* scratch);
    void measure_group(std::size_t chunk, std::size_t group, Walk walk, char* scratch);
    void measure_block(std::size_t matrix, std::size_t group, std::size_t first, std::size_t n,
                       Walk walk, char* scratch);
    void measure_param(std::size_t chunk, std::size_t tile, char* scratch);
    double* group_of(double* sums, std::size_t matrix, std::size_t group) const {
        return sums + (matrix * sums_.n_groups + group) * geometry_.partition.n_cross;
    }
    // The sums of squares of a tile of the chunk's matrices for which sum_of(matrix) is not null.
    template <class SumOf>
    void sum_param(std::size_t chunk, std::size_t tile, Walk walk, char* scratch,
                   const SumOf& sum_of) const;

    // factored_resolve.cpp; both (n_matrices, n_tiles)
    const SumWords* complete_param_squares(const Team& team);
    const SumWords* sum_u_squares(const Team& team);  // by factors of the direct form

    // factored_apply.cpp
    Factors factors_of(std::size_t matrix, const Rect& part) const;
    Rounding rounding_of(std::size_t matrix, const Rect& part) const;
    void apply_in_place(std::size_t chunk, std::size_t tile, Walk walk) const;
    void apply_by_parts(std::size_t chunk, std::size_t tile, char* scratch) const;
    void apply_copies(std::size_t matrix, const Rect& part, char* copies) const;
    void apply_blocks(const StepBlocks& blocks, std::size_t matrix, const Rect& part,
                      char* room) const;
    void apply_numbered(const StepBlocks& blocks, std::size_t matrix, const Rect& part,
                        char* room) const;
    void look(std::size_t task) override;
    void look_at(std::size_t matrix, const Rect& part);

    SumWords* written(std::size_t matrix, std::size_t tile) const {
        return param_squares_.written(matrix * geometry_.tiling.n_tiles + tile);
    }
    // A thread's memory for copies lies behind that for sums.
    char* copies_of(char* scratch) const { return scratch + geometry_.sums_size(); }

    ParamSquares param_squares_;
    Geometry geometry_;
    WalkedSweep measured_, summed_, applied_;
    PartialSums sums_;
    OldMeans old_;
    RunningMeans means_;
    Resolving resolving_;
    Resolved resolved_;
    double* mean_param_sq_ = nullptr;  // (n_matrices,), of the matrix or of all
};

template <class SumOf>
void FactoredStep::sum_param(std::size_t chunk, std::size_t tile, Walk walk, char* scratch,
                             const SumOf& sum_of) const {
    const Geometry& at = geometry_;
    at.for_matrices(chunk, [&](std::size_t m) {
        if (SumWords* const sum = sum_of(m)) *sum = {};
    });
    const bool in_place = at.param.has_unit_runs();
    const auto add_part = [&](const Rect& part) {
        at.for_matrices(chunk, [&](std::size_t m) {
            SumWords* const sum = sum_of(m);
            if (sum == nullptr) return;
            Block block = in_place ? block_in_place(at.param[m], part)
                                   : gather(at.param[m], part, copies_of(scratch));
            block.walk = walk;
            add_to(*sum, kernels_.sum_squares(block));
        });
    };
    if (in_place)
        add_part(at.tiling[tile]);
    else
        for_parts_of(at.tiling[tile], add_part);
}

}  // namespace adafactor
