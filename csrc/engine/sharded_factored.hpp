// What sharded steps of factored tensors share, however they are cut: the form of u, step sizes and
// factors, by numbers of whole matrices that each rank has after the exchange.
#pragma once

#include <cmath>
#include <vector>

#include "engine/factored.hpp"
#include "engine/sharded_tensor.hpp"

namespace adafactor {

class ShardedFactored : public ShardedTensor {
public:
    ShardedFactored(const Tensor& tensor, bool given, TensorReport& report,
                    const ShardedPlaces& places);

    void finish_measure(const Team& team) override;
    void take_sum(double* from) override;
    bool scale_grad(double factor) override;
    bool anticipates_second() override;
    Fault decide(const Team& team, bool propagate) override;

    bool needs_second() const override { return needs_second_ && !has_second_; }
    std::size_t n_second_max() const override { return n() + 3; }
    std::size_t n_second_sum() const override { return n() * kWords; }
    void measure_second(const Team& team) override;
    void put_second_max(double* to) const override;
    void take_second_max(const double* from) override;
    void put_second_sum(double* to) const override;
    void take_second_sum(const double* from) override;

    Fault finish(bool propagate) override;
    void prepare_apply() override;

protected:
    // A box of this rank: its step, and that one's arrays, (matrices, rows) and (matrices, cols).
    struct LocalBox {
        const Box* box = nullptr;
        Tensor tensor{};
        FactoredStep* step = nullptr;
        std::size_t n = 0, rows = 0, cols = 0;
        double *row_mean = nullptr, *col_mean = nullptr, *row_sq = nullptr, *col_sq = nullptr;
        const double *old_row = nullptr, *old_col = nullptr;
        std::vector<TwoWords> param_sq, u_sq;  // of each matrix
    };

    std::size_t n() const { return part_.n_matrices; }
    double n_elements() const { return double(part_.n_rows) * double(part_.n_cols); }
    Moment moment() const { return moment_of(hyper_); }
    Axis rows_of(const LocalBox& at, std::size_t k) const {
        return {at.rows, at.row_mean + k * at.rows, at.row_sq + k * at.rows, hyper_.eps_means};
    }
    Axis cols_of(const LocalBox& at, std::size_t k) const {
        return {at.cols, at.col_mean + k * at.cols, at.col_sq + k * at.cols, hyper_.eps_means};
    }
    // Adds up a box's groups, over the crossed axis of matrix k.
    void add_crossed(const LocalBox& at, std::size_t k, double* sum_sq, double* weighted) const;
    // Finishes the crossed axis of matrix k of a box of whole matrices; returns its weighted sums.
    double* finish_crossed(const LocalBox& at, std::size_t k) const;
    bool owns_rows(const LocalBox& at) const { return at.step->geometry_.owns_rows; }
    double mean_of_rows(const AxisSummary& rows) const;
    // Whether the state's format holds an axis's new means.
    bool state_holds(const Axis& axis, const AxisSummary& summary) const;

    // Fills moments_, param_sq_ and weighted_ by what was exchanged and hyper_; and overflows_.
    virtual void derive(double* sums) = 0;
    // Measures u in a sweep of its own; live means' extremes are those of all ranks after it only.
    virtual bool always_second() const { return false; }
    virtual bool is_unusable() const { return false; }  // of this rank's lines, in round B
    virtual bool overflows_here() const { return false; }

    // Before round A is repeated with a scaled gradient, `sums` being those of the first: what
    // fill_factors needs of this rank's boxes, the means of rows to within mean_margin() of
    // themselves.
    virtual void guess_moments(double* sums) { static_cast<void>(sums); }
    virtual double mean_margin() const { return 0; }

    const std::vector<double>& second_exponents() const { return exponents_; }
    void take_u_squares();  // u_sq_

    std::vector<LocalBox> boxes_;
    // Of each matrix of the whole tensor: the summaries of its axes; the sum of param^2; the
    // separable form's sum of u^2 over the mean of rows.
    std::vector<SecondMoment> moments_;
    std::vector<double> param_sq_, weighted_;
    std::vector<double> u_sq_;  // the direct form's, after round B
    bool overflows_ = false;    // a new running mean exceeds the state's format
    const KernelTable& kernels_;

private:
    template <class Test>
    bool all_moments(const Test& test) const;
    static bool all_are_finite(const std::vector<double>& numbers);
    Fault fault() const;
    void mean_of(const std::vector<double>& sums, std::vector<double>& mean) const;
    bool find_separable_u();
    bool is_separable() const;
    bool float_will_do() const;
    bool clips() const { return std::isfinite(hyper_.clip_threshold); }
    int digits() const { return is_all_float() ? 27 : 54; }  // that eps must be below to be lost
    bool may_be_direct(double factor) const;
    bool margin_shows() const;
    void find_step_sizes();
    void fill_factors(LocalBox& at, bool wide, bool separable);
    bool sum_direct_u(const Team& team, LocalBox& at, bool wide);

    double* sums_ = nullptr;
    std::vector<double> mean_u_sq_, mean_param_sq_, exponents_;
    std::vector<Descent> descents_;
    bool separable_ = false, wide_ = true, literal_ = false, needs_second_ = false;
    bool is_unusable_ = false;
    // Round B beside a repeated round A: whether it may be of use, is under way, depends on what is
    // guessed, and has given what one after it would.
    bool may_need_second_ = false, anticipates_ = false, is_vague_ = false, has_second_ = false;
};

// Whole rows or whole columns, whole matrices, any boxes.
std::unique_ptr<ShardedTensor> make_sharded_lines(const Tensor& tensor, bool given,
                                                  TensorReport& report,
                                                  const ShardedPlaces& places);
std::unique_ptr<ShardedTensor> make_sharded_batch(const Tensor& tensor, bool given,
                                                  TensorReport& report,
                                                  const ShardedPlaces& places);
std::unique_ptr<ShardedTensor> make_sharded_grid(const Tensor& tensor, bool given,
                                                 TensorReport& report, const ShardedPlaces& places);

}  // namespace adafactor
