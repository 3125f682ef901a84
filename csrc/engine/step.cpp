// A step of a list of tensors: the order of the phases.
#include <algorithm>
#include <cmath>

#include "adafactor.hpp"
#include "dispatch/isa.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {
namespace {

// Tensors are taken together, so that small ones share the threads, up to this many elements: few
// enough to be in the cores' own caches still when they are applied.
constexpr std::size_t kWaveElements = std::size_t(1) << 19;
// A tensor above this has work for all threads in every phase.
constexpr std::size_t kAloneElements = std::size_t(1) << 17;

template <class P, class G>
TensorStep* make_step_with(const Tensor& tensor, TensorReport& report, Scratch& kept,
                           const KernelTable& table, const Kernels<P, G>& kernels) {
    if (tensor.v != nullptr) return make_unfactored_step(tensor, report, kept, kernels);
    if (is_small(tensor)) return make_small_step(tensor, report, kept, kernels);
    return make_factored_step(tensor, report, kept, table, kernels);
}

TensorStep* make_step(const Tensor& tensor, TensorReport& report, Scratch& kept,
                      const KernelTable& table) {
    const bool p32 = tensor.param.format != Format::float64;
    const bool g32 = tensor.grad.format != Format::float64;
    return p32 && g32 ? make_step_with(tensor, report, kept, table, table.f32_f32)
           : p32      ? make_step_with(tensor, report, kept, table, table.f32_f64)
           : g32      ? make_step_with(tensor, report, kept, table, table.f64_f32)
                      : make_step_with(tensor, report, kept, table, table.f64_f64);
}

double value_of(const char* element, Format format) {
    if (is_half(format)) {
        Half bits;
        float value;
        __builtin_memcpy(&bits, element, sizeof(bits));
        running_half_kernels(format).widen({&bits, 0, 1, 1}, {&value, 0, 1, 1});
        return double(value);
    }
    if (format == Format::float32) {
        float value;
        __builtin_memcpy(&value, element, sizeof(value));
        return double(value);
    }
    double value;
    __builtin_memcpy(&value, element, sizeof(value));
    return value;
}

// The first element in C order whose square is not finite, or -1.
std::ptrdiff_t first_bad_of(const Array& array) {
    const auto size = std::ptrdiff_t(size_of(array));
    for (std::ptrdiff_t k = 0; k < size; ++k) {
        const char* p = array.data;
        for (std::ptrdiff_t d = array.ndim - 1, rest = k; d >= 0; --d) {
            p += rest % array.shape[d] * array.strides[d];
            rest /= array.shape[d];
        }
        const double x = value_of(p, array.format);
        if (!std::isfinite(x * x)) return k;
    }
    return -1;
}

class ListStep {
public:
    ListStep(const Tensor* tensors, std::size_t n_tensors, const Options& options,
             TensorReport* reports)
        : tensors_(tensors), n_tensors_(n_tensors), options_(options), reports_(reports) {}

    Outcome take() {
        make_steps();
        const bool clips = std::isfinite(options_.max_grad_norm);
        const bool whole = options_.all_or_none || clips;
        if (whole)
            take_as_a_whole(clips);
        else
            take_wave_by_wave();
        outcome_.grad_norm = grad_norm();
        const bool goes_on = outcome_.fault == Fault::none || (options_.skips && !whole);
        for (std::size_t k = 0; k < n_tensors_; ++k) {
            if (size_of(tensors_[k].param) == 0) reports_[k].stepped = goes_on;
            reports_[k].rms_grad =
                std::sqrt(reports_[k].grad_sq / double(size_of(tensors_[k].param))) *
                std::abs(tensors_[k].hyper.grad_scale);
        }
        return outcome_;
    }

private:
    // Steps [begin, end).
    struct Range {
        std::size_t begin, end;
        std::size_t elements;
    };

    // Tensors without elements have no step.
    void make_steps() {
        Scratch& kept = Scratch::kept_by_this_thread();
        kept.reset();
        steps_ = kept.take<TensorStep*>(n_tensors_);
        n_elements_ = kept.take<std::size_t>(n_tensors_);
        first_task_ = kept.take<std::size_t>(n_tensors_ + 1);
        const KernelTable& table = running_kernels();
        for (std::size_t k = 0; k < n_tensors_; ++k) {
            reports_[k] = {};
            const std::size_t size = size_of(tensors_[k].param);
            if (size == 0) continue;
            all_.elements += size;
            n_elements_[all_.end] = size;
            steps_[all_.end] = make_step(tensors_[k], reports_[k], kept, table);
            room_size_ = std::max(room_size_, steps_[all_.end]->room_size());
            ++all_.end;
        }
        room_size_ = (room_size_ + kPadding - 1) / kPadding * kPadding;
        rooms_ =
            kept.take<char>(room_size_ * std::size_t(team_size(all_.elements, options_.threads)));
    }

    void take_as_a_whole(bool clips) {
        if (!measure_all()) return;
        if (clips) {
            const double ratio = options_.max_grad_norm / (grad_norm() + 1e-6);
            if (!(ratio >= 1)) {
                for (std::size_t k = 0; k < all_.end; ++k) steps_[k]->scale_grad(ratio);
                if (!measure_all()) return;
            }
        }
        apply(all_);
    }

    bool measure_all() {
        for (Range wave = wave_from(0); wave.begin < wave.end; wave = wave_from(wave.end)) {
            measure(wave);
            if (!goes_on(wave)) return false;
        }
        return true;
    }

    void take_wave_by_wave() {
        for (Range wave = wave_from(0); wave.begin < wave.end;) {
            const Range next = wave_from(wave.end);
            measure(wave);
            const bool all = goes_on(wave);
            TensorStep** const begin = steps_ + wave.begin;
            const auto has_fault = [](TensorStep* step) {
                return step->report().fault != Fault::none;
            };
            if (options_.skips)
                wave.end =
                    std::size_t(std::remove_if(begin, steps_ + wave.end, has_fault) - steps_);
            else if (!all)
                wave.end = std::size_t(std::find_if(begin, steps_ + wave.end, has_fault) - steps_);
            apply(wave);
            if (!all && !options_.skips) return;
            wave = next;
        }
    }

    Range wave_from(std::size_t begin) const {
        Range wave{begin, begin, 0};
        while (wave.end < all_.end) {
            const std::size_t more = n_elements_[wave.end];
            const bool fits = more <= kAloneElements && wave.elements + more <= kWaveElements;
            if (wave.end > begin && !fits) break;
            wave.elements += more;
            ++wave.end;
            if (more > kAloneElements) break;
        }
        return wave;
    }

    Team team_for(const Range& range) const {
        return {team_size(range.elements, options_.threads), rooms_, room_size_};
    }

    // Calls body(step, task of it, room) for all tasks, as count(step) has it, of a range of steps.
    template <class Count, class Body>
    void for_all_tasks(const Range& range, Order order, const Count& count, const Body& body) {
        const Team team = team_for(range);
        TensorStep** const step = steps_ + range.begin;
        const std::size_t n = range.end - range.begin;
        if (n == 1) {
            team.for_tasks(count(*step[0]), order,
                           [&](std::size_t task, int, char* room) { body(*step[0], task, room); });
            return;
        }
        first_task_[0] = 0;
        for (std::size_t k = 0; k < n; ++k) first_task_[k + 1] = first_task_[k] + count(*step[k]);
        team.for_tasks(first_task_[n], order, [&](std::size_t task, int, char* room) {
            const std::size_t* const next = std::upper_bound(first_task_, first_task_ + n, task);
            const auto k = std::size_t(next - first_task_) - 1;
            body(*step[k], task - first_task_[k], room);
        });
    }

    void measure(const Range& wave) {
        Scratch& passing = Scratch::passing_in_this_thread();
        passing.reset();
        for (std::size_t k = wave.begin; k < wave.end; ++k)
            steps_[k]->allocate(Scratch::kept_by_this_thread(), passing);
        for_all_tasks(
            wave, Order::forwards, [](const TensorStep& step) { return step.n_measure_tasks(); },
            [](TensorStep& step, std::size_t task, char* room) { step.measure(task, room); });

        const Team team = team_for(wave);
        const auto resolve = [&](std::size_t k, const Team& by) {
            steps_[k]->report().fault = steps_[k]->resolve(by, options_.propagate);
        };
        if (wave.end - wave.begin == 1)
            resolve(wave.begin, team);
        else
            team.for_tasks(wave.end - wave.begin, Order::forwards,
                           [&](std::size_t k, int thread, char*) {
                               resolve(wave.begin + k, team.alone(thread));
                           });
    }

    // Whether none of the wave has a fault, or all that have are to take it in. Notes the first.
    bool goes_on(const Range& wave) {
        if (options_.propagate) return true;
        for (std::size_t k = wave.begin; k < wave.end; ++k) {
            const TensorReport& report = steps_[k]->report();
            if (report.fault == Fault::none) continue;
            if (outcome_.fault != Fault::none) return false;
            outcome_.fault = report.fault;
            outcome_.tensor = std::size_t(&report - reports_);
            const Tensor& tensor = tensors_[outcome_.tensor];
            if (report.fault != Fault::second_moment)
                outcome_.index =
                    first_bad_of(report.fault == Fault::grad ? tensor.grad : tensor.param);
            return false;
        }
        return true;
    }

    void apply(const Range& range) {
        if (range.begin == range.end) return;
        for (std::size_t k = range.begin; k < range.end; ++k) steps_[k]->begin_apply();
        // Backwards: what measure read last is still in a cache.
        for_all_tasks(
            range, Order::backwards, [](const TensorStep& step) { return step.n_apply_tasks(); },
            [](TensorStep& step, std::size_t task, char* room) { step.apply(task, room); });
        for (std::size_t k = range.begin; k < range.end; ++k) {
            steps_[k]->end_apply();
            steps_[k]->report().stepped = true;
        }
    }

    // After grad_scale, before max_grad_norm.
    double grad_norm() const {
        double sum = 0;
        for (std::size_t k = 0; k < n_tensors_; ++k) {
            const double scale = tensors_[k].hyper.grad_scale;
            sum += reports_[k].grad_sq * (scale * scale);
        }
        return std::sqrt(sum);
    }

    const Tensor* tensors_;
    std::size_t n_tensors_;
    Options options_;
    TensorReport* reports_;
    Outcome outcome_;
    Range all_{};
    TensorStep** steps_ = nullptr;       // (all_.end,)
    std::size_t* n_elements_ = nullptr;  // (all_.end,)
    std::size_t* first_task_ = nullptr;  // (all_.end + 1,)
    char* rooms_ = nullptr;
    std::size_t room_size_ = 0;
};

}  // namespace

Outcome step(const Tensor* tensors, std::size_t n_tensors, const Options& options,
             TensorReport* reports) {
    return ListStep(tensors, n_tensors, options, reports).take();
}

}  // namespace adafactor
