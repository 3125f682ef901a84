// Factored tensors whose sums are integers: the same bits for every layout and number of ranks, for
// four sweeps more. All layouts are boxes here. A sum's numbers are first bounded, on all ranks,
// then added up below that bound.
#include <algorithm>
#include <cmath>

#include "engine/fixed_sum.hpp"
#include "engine/sharded_grid.hpp"

namespace adafactor {
namespace {

constexpr std::size_t kColsTogether = 64;

class ShardedExact final : public ShardedGrid {
public:
    using ShardedGrid::ShardedGrid;

    std::size_t n_sum() const override { return n() * n_lines_and_sums() * kWords; }
    std::size_t bucket_length() const override { return n_sum(); }

    // Bounds of lines are maxima over all ranks, and so are the sums below them.
    void place_in_groups(std::vector<std::size_t>&) override {}

    void finish_measure(const Team& team) override {
        ShardedGrid::finish_measure(team);
        largest_.assign(n() * n_lines_and_sums(), 0);
        for_lines(
            team, [](std::size_t, double square, double& largest) { raise(largest, square); },
            largest_);
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n; ++k) {
                const std::size_t m = at.box->matrices[k];
                double& of_old = largest_[place(m) + n_lines()];
                for (std::size_t i = 0; i < at.rows; ++i)
                    raise(of_old, at.old_row[k * at.rows + i]);
            }
    }

    void add_up(const Team& team) override {
        sums_.assign(n() * n_lines_and_sums(), 0);
        for_lines(
            team,
            [&](std::size_t line, double square, Int128& sum) {
                if (is_summable(bounds_[line])) sum += fixed(square, int(bounds_[line]));
            },
            sums_);
        for (const LocalBox& at : boxes_)
            for (std::size_t k = 0; k < at.n && at.box->col == 0; ++k) {
                const std::size_t of_old = place(at.box->matrices[k]) + n_lines();
                if (!is_summable(bounds_[of_old])) continue;
                for (std::size_t i = 0; i < at.rows; ++i)
                    sums_[of_old] += fixed(at.old_row[k * at.rows + i], int(bounds_[of_old]));
            }
    }

    void put_sum(double* to) override {
        for (std::size_t k = 0; k < sums_.size(); ++k)
            put_fixed(part_.speaks ? sums_[k] : 0, to + k * kWords);
    }

    void measure_second(const Team& team) override {
        largest_u_.assign(n(), 0);
        for_u(
            team, [](double square, int, double& largest) { raise(largest, square); },
            [](double square, double& largest) { raise(largest, square); }, largest_u_);
    }

    void put_second_max(double* to) const override {
        std::fill_n(to, n_second_max(), kNeutral);
        for (std::size_t m = 0; m < n(); ++m) to[m] = fixed_exponent_of(largest_u_[m]);
        to[n()] = is_unusable();
        to[n() + 1] = overflows_here();
        put_extremes(to + ShardedFactored::n_second_max());
    }

    void add_up_second(const Team& team) override {
        sums_u_.assign(n(), 0);
        for_u(
            team, [](double square, int exponent, Int128& sum) { sum += fixed(square, exponent); },
            [](Int128 more, Int128& sum) { sum += more; }, sums_u_);
    }

    void put_second_sum(double* to) const override {
        for (std::size_t m = 0; m < n(); ++m)
            put_fixed(part_.speaks ? sums_u_[m] : 0, to + m * kWords);
    }

    void take_second_sum(const double* from) override {
        u_sq_.resize(n());
        for (std::size_t m = 0; m < n(); ++m)
            u_sq_[m] = fixed_value(from + m * kWords, second_exponents()[m]);
        take_u_squares();
    }

protected:
    std::size_t n_own_max() const override {
        return ShardedGrid::n_own_max() + n() * n_lines_and_sums();
    }

    void put_own_max(double* to) const override {
        ShardedGrid::put_own_max(to);
        to += ShardedGrid::n_own_max();
        for (const double largest : largest_) *to++ = fixed_exponent_of(largest);
    }

    void take_own_max(const double* from) override {
        ShardedGrid::take_own_max(from);
        from += ShardedGrid::n_own_max();
        bounds_.assign(from, from + n() * n_lines_and_sums());
    }

    void take_sum(double* from) override { ShardedFactored::take_sum(from); }

    void derive(double* sums) override {
        const auto value = [&](std::size_t k) {
            return fixed_value(sums + k * kWords, bounds_[k]);
        };
        for (std::size_t m = 0; m < n(); ++m) {
            TwoWords grad_sq;
            for (std::size_t row = 0; row < part_.n_rows; ++row) grad_sq.add(value(place(m) + row));
            const std::size_t rest = place(m) + n_lines();
            derive_matrix(m, value(rest), value(rest + 1), grad_sq.value());
        }
        for_lines_of_all([&](double& line, std::size_t at) {
            line = value(place(at / n_lines()) + at % n_lines());
        });
        finish_lines();
    }

private:
    // Of each matrix its rows, its columns, then the old running means of rows, and param.
    std::size_t n_lines() const { return part_.n_rows + part_.n_cols; }
    std::size_t n_lines_and_sums() const { return n_lines() + 2; }
    std::size_t place(std::size_t m) const { return m * n_lines_and_sums(); }

    static MatrixBatch matrices(const Array& array, const LocalBox& at) {
        return {array, at.tensor.row_axis, at.tensor.col_axis, false};
    }
    static double number_at(const MatrixView& view, std::size_t i, std::size_t j) {
        return number_of({view.at(i, j), 0, 1, 1, view.format, view.low});
    }

    // Calls take(place of the sum, square, what is kept of it) for all squares of grad, of rows and
    // of columns, and of param. Every place is one task's.
    template <class Take, class Kept>
    void for_lines(const Team& team, const Take& take, std::vector<Kept>& kept) const {
        std::vector<Kept> of_rows;
        for (const LocalBox& at : boxes_) {
            const MatrixBatch grad = matrices(at.tensor.grad, at);
            const MatrixBatch param = matrices(at.tensor.param, at);
            of_rows.assign(at.n * at.rows, 0);
            team.for_tasks(at.n * at.rows, Order::forwards, [&](std::size_t task, int, char*) {
                const std::size_t k = task / at.rows, i = task % at.rows;
                const std::size_t first = place(at.box->matrices[k]);
                const std::size_t row = first + at.box->row + i;
                const MatrixView g = grad[k], p = param[k];
                Kept own = kept[row];
                for (std::size_t j = 0; j < at.cols; ++j) {
                    const double x = number_at(g, i, j);
                    take(row, x * x, own);
                }
                kept[row] = own;
                if (!hyper_.scale_parameter) return;
                for (std::size_t j = 0; j < at.cols; ++j) {
                    const double x = number_at(p, i, j);
                    take(first + n_lines() + 1, x * x, of_rows[task]);
                }
            });
            for (std::size_t task = 0; task < of_rows.size(); ++task)
                join(of_rows[task], kept[place(at.box->matrices[task / at.rows]) + n_lines() + 1]);
            const std::size_t parts = (at.cols + kColsTogether - 1) / kColsTogether;
            team.for_tasks(at.n * parts, Order::forwards, [&](std::size_t task, int, char*) {
                const std::size_t k = task / parts, begin = task % parts * kColsTogether;
                const std::size_t end = std::min(begin + kColsTogether, at.cols);
                const std::size_t col = place(at.box->matrices[k]) + part_.n_rows + at.box->col;
                const MatrixView g = grad[k];
                for (std::size_t i = 0; i < at.rows; ++i)
                    for (std::size_t j = begin; j < end; ++j) {
                        const double x = number_at(g, i, j);
                        take(col + j, x * x, kept[col + j]);
                    }
            });
        }
    }
    static void join(double more, double& largest) { raise(largest, more); }
    static void join(Int128 more, Int128& sum) { sum += more; }

    // Calls take(u^2, exponent of the matrix, what is kept of a row), then join_rows.
    template <class Take, class Join, class Kept>
    void for_u(const Team& team, const Take& take, const Join& join_rows,
               std::vector<Kept>& kept) const {
        std::vector<double> col_root;
        std::vector<Kept> of_rows;
        const double eps_means = hyper_.eps_means;
        const bool literal = is_unusable();  // 0 / 0 counts
        for (const LocalBox& at : boxes_) {
            const MatrixBatch grad = matrices(at.tensor.grad, at);
            col_root.resize(at.n * at.cols);
            for (std::size_t j = 0; j < col_root.size(); ++j)
                col_root[j] = std::sqrt(at.col_mean[j] + eps_means);
            of_rows.assign(at.n * at.rows, 0);
            team.for_tasks(at.n * at.rows, Order::forwards, [&](std::size_t task, int, char*) {
                const std::size_t k = task / at.rows, i = task % at.rows;
                const std::size_t m = at.box->matrices[k];
                const MatrixView g = grad[k];
                const double row_root =
                    std::sqrt(at.row_mean[task] + eps_means) / std::sqrt(moments_[m].mean);
                const double exponent = second_exponents().empty() ? 0 : second_exponents()[m];
                if (std::is_same_v<Kept, Int128> && !is_summable(exponent)) return;
                for (std::size_t j = 0; j < at.cols; ++j) {
                    const double x = number_at(g, i, j);
                    if (x == 0 && !literal) continue;
                    const double root = row_root * col_root[k * at.cols + j] + hyper_.eps_root;
                    const double u = x / (root < hyper_.root_floor ? hyper_.root_floor : root);
                    take(u * u, int(exponent), of_rows[task]);
                }
            });
            for (std::size_t task = 0; task < of_rows.size(); ++task)
                join_rows(of_rows[task], kept[at.box->matrices[task / at.rows]]);
        }
    }

    std::vector<double> largest_, bounds_, largest_u_;
    std::vector<Int128> sums_, sums_u_;
};

}  // namespace

std::unique_ptr<ShardedTensor> make_sharded_exact(const Tensor& tensor, bool given,
                                                  TensorReport& report,
                                                  const ShardedPlaces& places) {
    return std::make_unique<ShardedExact>(tensor, given, report, places);
}

}  // namespace adafactor
