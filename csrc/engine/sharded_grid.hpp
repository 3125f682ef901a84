// Any boxes of a matrix: what is exchanged, and what is made of it. sharded_exact.cpp adds up
// otherwise.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/finish_report.hpp"
#include "engine/sharded_factored.hpp"

namespace adafactor {

// Neither axis is known before the exchange, which sums both, so that u is measured in one more
// sweep, and its sum exchanged. A rank has the sums of its own lines only, and of the whole matrix
// a few numbers. Each line of the state is spoken for by the box that has its first element.
class ShardedGrid : public ShardedFactored {
public:
    ShardedGrid(const Tensor& tensor, bool given, TensorReport& report, const ShardedPlaces& places)
        : ShardedFactored(tensor, given, report, places) {
        if (!given) return;
        lines_.resize(part_.n_row_lines + part_.n_col_lines);
        if (part_.is_range()) hold_short_matrices();
    }

    std::size_t n_sum() const override { return n() * kSums * kWords + n_lines_over_all(); }
    std::size_t bucket_length() const override {
        return n() * (kSums * kWords + part_.n_rows + part_.n_cols);
    }

    void finish_measure(const Team& team) override {
        ShardedFactored::finish_measure(team);
        if (!own_.empty()) return;  // measured again, with the same state
        own_.resize(n());
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k) {
                OfMatrix& own = own_[at.box->matrices[k]];
                if (at.box->col == 0)
                    for (std::size_t i = 0; i < at.rows; ++i)
                        own.old_sum.add(at.old_row[k * at.rows + i]);
                if (hyper_.scale_parameter) own.param_sq.add(at.param_sq[k]);
                const bool by_rows = owns_rows(at);
                const double* const of_lines = by_rows ? at.row_sq : at.col_sq;
                const std::size_t n_lines = by_rows ? at.rows : at.cols;
                for (std::size_t i = 0; i < n_lines; ++i)
                    own.grad_sq.add(of_lines[k * n_lines + i]);
            }
    }

    void put_sum(double* to) override {
        std::fill_n(to, n_sum(), 0.0);
        std::fill(lines_.begin(), lines_.end(), 0.0);
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k) add_lines(at, k);
        if (!part_.speaks) return;
        for (std::size_t m = 0; m < n(); ++m) {
            const TwoWords* const sums[kSums] = {&own_[m].old_sum, &own_[m].param_sq,
                                                 &own_[m].grad_sq};
            for (std::size_t k = 0; k < kSums; ++k)
                put_words(*sums[k], exponents_[m * kSums + k], to + (m * kSums + k) * kWords);
        }
        double* const all = to + n() * kSums * kWords;
        if (part_.shared)
            for_shared([&](const SharedLines& lines, double* own, std::size_t place) {
                if (lines.group == 0) std::copy_n(own, lines.end - lines.begin, all + place);
            });
        else
            for_lines_of_all([&](double& line, std::size_t place) { all[place] += line; });
    }

    void take_sum(double* from) override {
        const double* const all = from + n() * kSums * kWords;
        if (part_.shared)
            for_shared([&](const SharedLines& lines, double* own, std::size_t place) {
                if (lines.group == 0) std::copy_n(all + place, lines.end - lines.begin, own);
            });
        else
            for_lines_of_all([&](double& line, std::size_t place) { line = all[place]; });
        ShardedFactored::take_sum(from);
    }

    void place_in_groups(std::vector<std::size_t>& sizes) override {
        places_.clear();
        if (!part_.shared) return;
        std::size_t of_all = 0;
        for (const SharedLines& lines : *part_.shared) {
            std::size_t& size = lines.group == 0 ? of_all : sizes[std::size_t(lines.group)];
            places_.push_back(size);
            size += lines.end - lines.begin;
        }
    }

    void put_in_groups(const std::vector<double*>& groups) override {
        if (!part_.speaks) return;
        for_shared([&](const SharedLines& lines, double* own, std::size_t place) {
            if (lines.group == 0) return;
            std::copy_n(own, lines.end - lines.begin, groups[std::size_t(lines.group)] + place);
        });
    }

    void take_from_groups(const std::vector<double*>& groups) override {
        for_shared([&](const SharedLines& lines, double* own, std::size_t place) {
            if (lines.group == 0) return;
            const double* const from = groups[std::size_t(lines.group)] + place;
            std::copy_n(from, lines.end - lines.begin, own);
        });
    }

    void begin_apply() override {
        ShardedFactored::begin_apply();
        for (const ShortMatrix& matrix : short_) put_columns(matrix);
    }

    std::size_t n_second_max() const override {
        return ShardedFactored::n_second_max() + n() * kExtremes;
    }

    void put_second_max(double* to) const override {
        ShardedFactored::put_second_max(to);
        put_extremes(to + ShardedFactored::n_second_max());
    }

    void take_second_max(const double* from) override {
        ShardedFactored::take_second_max(from);
        from += ShardedFactored::n_second_max();
        for (SecondMoment& moment : moments_)
            for (AxisSummary* summary : {&moment.row_summary, &moment.col_summary}) {
                summary->smallest_live = -*from++;
                summary->largest_live = *from++;
            }
    }

protected:
    std::size_t n_own_max() const override { return n() * kSums; }

    void put_own_max(double* to) const override {
        for (const OfMatrix& own : own_)
            for (const TwoWords* sum : {&own.old_sum, &own.param_sq, &own.grad_sq})
                *to++ = exponent_of(*sum);
    }

    void take_own_max(const double* from) override { exponents_.assign(from, from + n() * kSums); }

    void derive(double* sums) override {
        for (std::size_t m = 0; m < n(); ++m) {
            double value[kSums];
            for (std::size_t k = 0; k < kSums; ++k)
                value[k] = sum_of_words(sums + (m * kSums + k) * kWords, exponents_[m * kSums + k])
                               .value();
            derive_matrix(m, value[0], value[1], value[2]);
        }
        finish_lines();
    }

    // Of the sums of the old running means over rows, of param^2 and of grad^2.
    void derive_matrix(std::size_t m, double old_sum, double param_sq, double grad_sq) {
        const double infinity = std::numeric_limits<double>::infinity();
        SecondMoment& moment = moments_[m];
        for (AxisSummary* summary : {&moment.row_summary, &moment.col_summary}) {
            *summary = {};
            summary->sum_sq = grad_sq;
            summary->smallest = infinity;  // whether any is zero or less is found in round B
            summary->smallest_live = infinity;
        }
        // Running means are linear in the old ones and the sums: so is the sum of them.
        const double now = grad_sq * grad_sq_scale() / double(part_.n_cols);
        moment.row_summary.sum =
            hyper_.beta2 * old_sum +
            (1 - hyper_.beta2) * (now + double(part_.n_rows) * hyper_.eps_squares);
        moment.mean = mean_of_rows(moment.row_summary);
        param_sq_[m] = param_sq;
    }

    // The running means of this rank's lines. Their extremes are those of the whole matrices from
    // round B on; before, they tell in which format this rank measures u.
    void finish_lines() {
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k) {
                SecondMoment& moment = moments_[at.box->matrices[k]];
                finish_axis(rows_of(at, k), rows_at(at, k), part_.n_cols, at.old_row + k * at.rows,
                            moment.row_summary);
                finish_axis(cols_of(at, k), cols_at(at, k), part_.n_rows, at.old_col + k * at.cols,
                            moment.col_summary);
            }
        for (ShortMatrix& matrix : short_)
            kernels_.add_groups({lines_.data() + part_.n_row_lines + matrix.first, nullptr, 1,
                                 moment(), double(part_.n_rows), matrix.old.data()},
                                0, part_.n_cols,
                                {part_.n_cols, matrix.mean.data(), matrix.sum_sq.data(), 0});
    }

    bool always_second() const final { return true; }

    bool is_unusable() const override {
        const bool zero_is_fine = hyper_.eps_root > 0 || hyper_.root_floor > 0;
        return any_mean([&](double mean) {
            const double used = mean + hyper_.eps_means;
            return !(used > 0 || (used == 0 && zero_is_fine)) || std::isinf(used);
        });
    }

    bool overflows_here() const override {
        return tensor_.state_format == Format::float32 &&
               any_mean([](double mean) { return mean > kLargestFloat; });
    }

    // Of each matrix: its sums, and the smallest and largest of its lines that are live.
    static constexpr std::size_t kSums = 3, kExtremes = 4;

    // Sums over what this rank has of a matrix.
    struct OfMatrix {
        TwoWords old_sum, param_sq, grad_sq;
    };

    // A matrix of which a range has no whole row. This rank has the state of all its columns all
    // the same, and keeps it up: the running means of columns, before and after.
    struct ShortMatrix {
        std::size_t first;  // of its columns among those of this rank
        std::vector<double> old, mean, sum_sq;
    };

    // Where the sums of a box's lines of matrix k begin in lines_: rows as in the state, then
    // columns.
    double* rows_at(const LocalBox& at, std::size_t k) {
        return lines_.data() + at.box->row_line + k * at.rows;
    }
    double* cols_at(const LocalBox& at, std::size_t k) {
        return lines_.data() + part_.n_row_lines + at.box->col_line + k * at.cols;
    }

    void add_lines(const LocalBox& at, std::size_t k) {
        double* const rows = rows_at(at, k);
        double* const cols = cols_at(at, k);
        const bool by_rows = owns_rows(at);
        const std::size_t n_lines = by_rows ? at.rows : at.cols;
        const double* const own = (by_rows ? at.row_sq : at.col_sq) + k * n_lines;
        double* const to_own = by_rows ? rows : cols;
        for (std::size_t i = 0; i < n_lines; ++i) to_own[i] += own[i];
        add_crossed(at, k, by_rows ? cols : rows, nullptr);
    }

    // The lines that all ranks exchange: those of all matrices where no groups are known.
    std::size_t n_lines_over_all() const {
        if (!part_.shared) return n() * (part_.n_rows + part_.n_cols);
        std::size_t size = 0;
        for (const SharedLines& lines : *part_.shared)
            if (lines.group == 0) size += lines.end - lines.begin;
        return size;
    }

    // Calls body(lines, their sums here, their place among those of the group).
    template <class Body>
    void for_shared(const Body& body) {
        for (std::size_t k = 0; k < places_.size(); ++k) {
            const SharedLines& lines = (*part_.shared)[k];
            const std::size_t first = lines.are_rows ? 0 : part_.n_row_lines;
            body(lines, lines_.data() + first + lines.begin, places_[k]);
        }
    }

    // Calls body(line of this rank, its place among those of all), for each line once.
    template <class Body>
    void for_lines_of_all(const Body& body) {
        const std::size_t n_lines = part_.n_rows + part_.n_cols;
        double* const rows = lines_.data();
        double* const cols = rows + part_.n_row_lines;
        if (part_.is_range()) {  // its boxes have columns in common
            for (std::size_t i = 0; i < part_.n_row_lines; ++i) {
                const std::size_t row = std::size_t(part_.start[0]) / part_.n_cols + i;
                body(rows[i], row / part_.n_rows * n_lines + row % part_.n_rows);
            }
            for (std::size_t j = 0; j < part_.n_col_lines; ++j) {
                const std::size_t m = first_matrix() + j / part_.n_cols;
                body(cols[j], m * n_lines + part_.n_rows + j % part_.n_cols);
            }
            return;
        }
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k) {
                const std::size_t first = at.box->matrices[k] * n_lines;
                for (std::size_t i = 0; i < at.rows; ++i)
                    body(rows_at(at, k)[i], first + at.box->row + i);
                for (std::size_t j = 0; j < at.cols; ++j)
                    body(cols_at(at, k)[j], first + part_.n_rows + at.box->col + j);
            }
    }

    std::size_t first_matrix() const {
        return std::size_t(part_.start[0]) / (part_.n_rows * part_.n_cols);
    }

    void finish_axis(const Axis& axis, double* sum_sq, std::size_t length, const double* old,
                     AxisSummary& of_matrix) {
        kernels_.add_groups({sum_sq, nullptr, 1, moment(), double(length), old}, 0, axis.size,
                            axis);
        const AxisSummary here = kernels_.summarize(axis);
        of_matrix.smallest_live = std::min(of_matrix.smallest_live, here.smallest_live);
        of_matrix.largest_live = std::max(of_matrix.largest_live, here.largest_live);
    }

    void hold_short_matrices() {
        const std::size_t n_cols = part_.n_cols;
        for (std::size_t first = 0; first < part_.n_col_lines; first += n_cols) {
            const bool has_whole_row =
                std::any_of(boxes_.begin(), boxes_.end(), [&](const LocalBox& at) {
                    const std::size_t begin = at.box->col_line;
                    return at.cols == n_cols && begin <= first && first < begin + at.n * n_cols;
                });
            if (has_whole_row) continue;
            const std::vector<double> zeros(n_cols);
            ShortMatrix& matrix = short_.emplace_back(ShortMatrix{first, zeros, zeros, zeros});
            for (std::size_t j = 0; j < n_cols; ++j)
                matrix.old[j] = tensor_.state_format == Format::float64
                                    ? static_cast<const double*>(tensor_.exp_col)[first + j]
                                    : static_cast<const float*>(tensor_.exp_col)[first + j];
        }
    }

    void put_columns(const ShortMatrix& matrix) const {
        for (std::size_t j = 0; j < part_.n_cols; ++j) {
            const double mean = one_nan(matrix.mean[j]);
            if (tensor_.state_format == Format::float64)
                static_cast<double*>(tensor_.exp_col)[matrix.first + j] = mean;
            else
                static_cast<float*>(tensor_.exp_col)[matrix.first + j] = float(mean);
        }
    }

    void put_extremes(double* to) const {
        for (const SecondMoment& moment : moments_)
            for (const AxisSummary* summary : {&moment.row_summary, &moment.col_summary}) {
                *to++ = for_maximum(-summary->smallest_live);
                *to++ = for_maximum(summary->largest_live);
            }
    }

    template <class Test>
    bool any_mean(const Test& test) const {
        const auto any = [&](const double* means, std::size_t size) {
            return std::any_of(means, means + size, test);
        };
        return std::any_of(boxes_.begin(), boxes_.end(), [&](const LocalBox& at) {
            return any(at.row_mean, at.n * at.rows) || any(at.col_mean, at.n * at.cols);
        });
    }

    std::vector<OfMatrix> own_;
    std::vector<ShortMatrix> short_;
    std::vector<double> exponents_, lines_;
    std::vector<std::size_t> places_;  // of shared lines in their groups' arrays
};

}  // namespace adafactor
