// A step of a list of tensors: the order of the phases, and whether a step is all or nothing.
#include <algorithm>
#include <cmath>
#include <limits>

#include "adafactor.hpp"
#include "dispatch/isa.hpp"
#include "engine/clip_and_scale.hpp"
#include "engine/finish_report.hpp"
#include "engine/measured.hpp"
#include "engine/scaled_gradient.hpp"
#include "engine/strided.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {
namespace {

// Tensors are taken together, so that small ones share the threads, up to this many elements: few
// enough to be in the cores' own caches still when they are applied.
constexpr std::size_t kWaveElements = std::size_t(1) << 19;
// A tensor above this has work for all threads in every phase.
constexpr std::size_t kAloneElements = std::size_t(1) << 17;

class ListStep {
public:
    ListStep(const Tensor* tensors, std::size_t n_tensors, const Options& options,
             TensorReport* reports)
        : tensors_(tensors),
          n_tensors_(n_tensors),
          options_(options),
          reports_(reports),
          kernels_(running_kernels()) {}

    Outcome take() {
        make_steps();
        const bool clips = std::isfinite(options_.max_grad_norm);
        const bool is_whole =
            options_.all_or_none || clips || std::isfinite(options_.skip_norm_above);
        if (is_whole)
            take_as_a_whole(clips);
        else
            take_wave_by_wave();
        finish_reports(!outcome_.is_spike &&
                       (outcome_.fault == Fault::none || (options_.skips && !is_whole)));
        return outcome_;
    }

private:
    // Steps [begin, end).
    struct Wave {
        std::size_t begin, end;
        std::size_t elements;
    };

    // Tensors without elements have no step.
    void make_steps() {
        Scratch& for_step = Scratch::of_this_threads_step();
        for_step.reset();
        steps_ = for_step.take<TensorStep*>(n_tensors_);
        n_elements_ = for_step.take<std::size_t>(n_tensors_);
        first_task_ = for_step.take<std::size_t>(n_tensors_ + 1);
        const Place place = place_of_all();
        for (std::size_t k = 0; k < n_tensors_; ++k) {
            reports_[k] = {};
            const std::size_t size = size_of(tensors_[k].param);
            if (size == 0) continue;
            all_.elements += size;
            n_elements_[all_.end] = size;
            steps_[all_.end] = step_of(tensors_[k], reports_[k], for_step, place);
            scratch_size_ = std::max(scratch_size_, steps_[all_.end]->scratch_size());
            ++all_.end;
        }
        allocate_scratch();
        Scratch::of_this_threads_measure().reset();
    }

    // By the bytes of params and gradients.
    Place place_of_all() const {
        std::size_t bytes = 0;
        for (const Tensor* tensor = tensors_; tensor < tensors_ + n_tensors_; ++tensor)
            bytes += size_of(tensor->param) *
                     (item_size(tensor->param.format) + item_size(tensor->grad.format));
        return place_of(bytes);
    }

    // What was measured before is not measured again, where it holds still.
    TensorStep* step_of(const Tensor& tensor, TensorReport& report, Scratch& for_step,
                        Place place) const {
        const double scale = tensor.hyper.grad_scale;
        if (is_far_below_1(scale)) return scaled_step(tensor, scale, report, for_step, place);
        if (tensor.measured != nullptr && tensor.measured->serves(tensor))
            return tensor.measured->take_over(tensor, report);
        TensorStep* const step = make_step(tensor, report, for_step, kernels_, place);
        step->allocate(for_step);
        return step;
    }

    TensorStep* scaled_step(const Tensor& tensor, double scale, TensorReport& report,
                            Scratch& for_step, Place place) const {
        int exponent = 0;
        const int threads = team_size(size_of(tensor.param), options_.threads);
        const Tensor& scaled = with_scaled_gradient(tensor, scale, threads, for_step, exponent);
        TensorStep* const step = make_step(scaled, report, for_step, kernels_, place);
        step->allocate(for_step);
        step->note_grad_exponent(exponent);
        return step;
    }

    // Scales the gradients of all steps, which are then to be measured again.
    void scale_grads(double ratio) {
        Scratch& for_step = Scratch::of_this_threads_step();
        const Place place = place_of_all();
        const std::size_t had = scratch_size_;
        for (std::size_t k = 0; k < all_.end; ++k) {
            TensorReport& report = steps_[k]->report();
            const Tensor& tensor = tensors_[&report - reports_];
            if (is_far_below_1(steps_[k]->grad_scale() * ratio)) {
                const double scale = tensor.hyper.grad_scale * ratio;
                steps_[k] = scaled_step(tensor, scale, report, for_step, place);
                scratch_size_ = std::max(scratch_size_, steps_[k]->scratch_size());
            } else {
                steps_[k]->scale_grad(ratio);
            }
        }
        if (scratch_size_ > had) allocate_scratch();
    }

    void allocate_scratch() {
        scratch_size_ = (scratch_size_ + kPadding - 1) / kPadding * kPadding;
        const int threads = team_size(all_.elements, options_.threads);
        scratch_ = Scratch::of_this_threads_step().take<char>(scratch_size_ * std::size_t(threads));
    }

    // Applies nothing before all is measured and well.
    void take_as_a_whole(bool clips) {
        const bool is_last = !clips && !std::isfinite(options_.skip_norm_above);
        if (!measure_all(is_last)) return;
        if (std::isfinite(options_.skip_norm_above)) {
            const double norm = grad_norm();
            outcome_.is_spike = std::isfinite(norm) && norm > options_.skip_norm_above;
            if (outcome_.is_spike) return;
        }
        if (clips) {
            norm_ = norm_to_clip_by();
            const double ratio = options_.max_grad_norm / (norm_ + 1e-6);
            if (!(ratio >= 1)) {
                scale_grads(ratio);
                if (!measure_all(true)) return;
                return apply(all_);
            }
            if (postponed_ != nullptr) {
                postponed_->report().fault = postponed_fault_;
                return note_fault(*postponed_);
            }
        }
        if (!is_last && !check_all()) return;
        apply(all_);
    }

    // The norm of all gradients. Sums of float32 are good for steps of float32, not for those of
    // float64: where it clips such ones, all is summed in float64.
    double norm_to_clip_by() {
        const double norm = grad_norm();
        TensorStep **const begin = steps_, **const end = steps_ + all_.end;
        const auto is_wide = [](const TensorStep* step) { return step->is_wide(); };
        const bool is_mixed = std::any_of(begin, end, is_wide) && !std::all_of(begin, end, is_wide);
        if (!is_mixed || norm < 0.999 * options_.max_grad_norm) return norm;
        std::size_t n_tiles = 0;
        for (TensorStep** step = begin; step < end; ++step)
            n_tiles = std::max(n_tiles, (*step)->n_tiles());
        double* const sums = Scratch::of_this_threads_step().take<double>(n_tiles);
        const Team team = team_for(all_);
        double sum = 0;
        for (TensorStep** step = begin; step < end; ++step) {
            const TensorReport& report = (*step)->report();
            const double scale = tensors_[&report - reports_].hyper.grad_scale;
            sum += (scale * scale) *
                   (is_wide(*step) ? report.grad_sq : (*step)->sum_grad_sq_in_double(team, sums));
        }
        return std::sqrt(sum);
    }

    // The last time that all are measured they are also checked. A step that is left out reports of
    // all tensors. Before a norm is known that may
    // clip, only what has no norm is a fault: a second moment may be sound of smaller gradients.
    bool measure_all(bool is_last) {
        const bool postpones = !is_last && std::isfinite(options_.max_grad_norm);
        bool is_well = true;
        for (Wave wave = wave_from(0); wave.begin < wave.end; wave = wave_from(wave.end)) {
            measure(wave);
            resolve(wave, is_last);
            if (postpones) postpone_faults(wave);
            is_well = !has_fault(wave) && is_well;
            if (!is_well && !options_.skips) break;  // nobody reads a report
        }
        return is_well;
    }

    void postpone_faults(const Wave& wave) {
        for (std::size_t k = wave.begin; k < wave.end && !options_.propagate; ++k) {
            Fault& fault = steps_[k]->report().fault;
            if (!depends_on_scale(fault)) continue;
            if (postponed_ == nullptr) {
                postponed_ = steps_[k];
                postponed_fault_ = fault;
            }
            fault = Fault::none;
        }
    }

    bool check_all() {
        for (Wave wave = wave_from(0); wave.begin < wave.end; wave = wave_from(wave.end)) {
            check(wave);
            if (has_fault(wave)) return false;
        }
        return true;
    }

    // Allocates now what each wave will, so that no wave fails when another is applied already.
    void reserve_sums() {
        if (wave_from(0).end == all_.end) return;
        Scratch& for_measure = Scratch::of_this_threads_measure();
        std::size_t most = 0;
        for (Wave wave = wave_from(0); wave.begin < wave.end; wave = wave_from(wave.end)) {
            allocate_sums(wave);
            most = std::max(most, for_measure.taken());
        }
        for_measure.reserve(most);
    }

    void allocate_sums(const Wave& wave) {
        Scratch& for_measure = Scratch::of_this_threads_measure();
        for_measure.rewind();
        for (std::size_t k = wave.begin; k < wave.end; ++k)
            if (!steps_[k]->is_measured()) steps_[k]->allocate_sums(for_measure);
    }

    // Finishes each wave while it is in cache. A tensor with a fault is left out, and unless the
    // step skips such tensors, so is all behind it.
    void take_wave_by_wave() {
        reserve_sums();
        for (Wave wave = wave_from(0); wave.begin < wave.end;) {
            const Wave next = wave_from(wave.end);
            measure(wave);
            resolve(wave, true);
            const bool is_last = has_fault(wave) && !options_.skips;
            if (!options_.propagate) leave_out_faults(wave);
            apply(wave);
            if (is_last) return;
            wave = next;
        }
    }

    void leave_out_faults(Wave& wave) {
        const auto is_faulty = [](TensorStep* step) { return step->report().fault != Fault::none; };
        TensorStep **const begin = steps_ + wave.begin, **const end = steps_ + wave.end;
        TensorStep** const kept = options_.skips ? std::remove_if(begin, end, is_faulty)
                                                 : std::find_if(begin, end, is_faulty);
        wave.end = std::size_t(kept - steps_);
    }

    Wave wave_from(std::size_t begin) const {
        Wave wave{begin, begin, 0};
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

    Team team_for(const Wave& wave) const {
        return {team_size(wave.elements, options_.threads), scratch_, scratch_size_};
    }

    // Calls body(step, task of it, scratch) for all tasks, as count(step) has it, of a wave's
    // steps.
    template <class Count, class Body>
    void for_all_tasks(const Wave& wave, Order order, const Count& count, const Body& body) {
        const Team team = team_for(wave);
        TensorStep** const step = steps_ + wave.begin;
        const std::size_t n = wave.end - wave.begin;
        if (n == 1) {
            team.for_tasks(count(*step[0]), order, [&](std::size_t task, int, char* scratch) {
                body(*step[0], task, scratch);
            });
            return;
        }
        first_task_[0] = 0;
        for (std::size_t k = 0; k < n; ++k) first_task_[k + 1] = first_task_[k] + count(*step[k]);
        team.for_tasks(first_task_[n], order, [&](std::size_t task, int, char* scratch) {
            const std::size_t* const next = std::upper_bound(first_task_, first_task_ + n, task);
            const auto k = std::size_t(next - first_task_) - 1;
            body(*step[k], task - first_task_[k], scratch);
        });
    }

    void measure(const Wave& wave) {
        allocate_sums(wave);
        for_all_tasks(
            wave, Order::forwards,
            [](const TensorStep& step) { return step.n_measure_tasks_left(); },
            [](TensorStep& step, std::size_t task, char* scratch) {
                if (!step.is_measured()) step.measure(task, scratch);
                step.look_at_due(task);
            });
    }

    void resolve(const Wave& wave, bool checks) {
        for_each(wave, [&](TensorStep& step, const Team& team) {
            step.report().fault = step.resolve(team, options_.propagate);
            step.finish_grad_sq();
            if (checks) check(step, team);
        });
    }

    void check(const Wave& wave) {
        for_each(wave, [&](TensorStep& step, const Team& team) { check(step, team); });
    }

    void check(TensorStep& step, const Team& team) {
        if (options_.propagate) return step.note_whether_sound(team);
        if (step.report().fault == Fault::none) step.report().fault = step.check(team);
    }

    // Calls body(step, the team for it) for the steps of a wave.
    template <class Body>
    void for_each(const Wave& wave, const Body& body) {
        const Team team = team_for(wave);
        const std::size_t n = wave.end - wave.begin;
        if (n == 1) return body(*steps_[wave.begin], team);
        team.for_tasks(n, Order::forwards, [&](std::size_t k, int thread, char*) {
            body(*steps_[wave.begin + k], team.alone(thread));
        });
    }

    // Whether a fault of the wave's is to keep its tensor from being stepped; the step's first such
    // fault is its outcome.
    bool has_fault(const Wave& wave) {
        if (options_.propagate) return false;
        for (std::size_t k = wave.begin; k < wave.end; ++k) {
            const TensorReport& report = steps_[k]->report();
            if (report.fault == Fault::none) continue;
            if (outcome_.fault == Fault::none) note_fault(*steps_[k]);
            return true;
        }
        return false;
    }

    void note_fault(TensorStep& step) {
        outcome_.fault = step.report().fault;
        outcome_.tensor = std::size_t(&step.report() - reports_);
        const Tensor& tensor = tensors_[outcome_.tensor];
        if (const Array* const array = array_at_fault(tensor, outcome_.fault))
            outcome_.index = first_of(*array, [&](const Block& element) {
                return outcome_.fault == Fault::result
                           ? element.data == step.infinite_param()
                           : !std::isfinite(kernels_.sum_squares(element).high);
            });
    }

    void apply(const Wave& wave) {
        if (wave.begin == wave.end) return;
        for (std::size_t k = wave.begin; k < wave.end; ++k) steps_[k]->begin_apply();
        // Backwards: what measure read last is still in a cache.
        for_all_tasks(
            wave, Order::backwards, [](const TensorStep& step) { return step.n_apply_tasks(); },
            [](TensorStep& step, std::size_t task, char* scratch) { step.apply(task, scratch); });
        for (std::size_t k = wave.begin; k < wave.end; ++k) {
            steps_[k]->end_apply();
            if (options_.propagate)
                steps_[k]->make_nans_one(team_for(wave));
            else
                steps_[k]->remember();
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

    void finish_reports(bool steps_empty_tensors) {
        outcome_.grad_norm = one_nan(std::isnan(norm_) ? grad_norm() : norm_);
        for (std::size_t k = 0; k < n_tensors_; ++k) {
            const std::size_t size = size_of(tensors_[k].param);
            if (size == 0) reports_[k].stepped = steps_empty_tensors;
            finish_report(reports_[k], double(size), tensors_[k].hyper.grad_scale);
        }
    }

    const Tensor* tensors_;
    std::size_t n_tensors_;
    Options options_;
    TensorReport* reports_;
    const KernelTable& kernels_;
    Outcome outcome_;
    double norm_ = std::numeric_limits<double>::quiet_NaN();  // that clips, where one is asked for
    TensorStep* postponed_ = nullptr;  // the first with a fault, unless its gradient is scaled
    Fault postponed_fault_ = Fault::none;
    Wave all_{};
    TensorStep** steps_ = nullptr;       // (all_.end,)
    std::size_t* n_elements_ = nullptr;  // (all_.end,)
    std::size_t* first_task_ = nullptr;  // (all_.end + 1,)
    char* scratch_ = nullptr;            // scratch_size_ bytes of each thread
    std::size_t scratch_size_ = 0;
};

}  // namespace

TensorStep* make_step(const Tensor& tensor, TensorReport& report, Scratch& for_step,
                      const KernelTable& kernels, Place place) {
    if (tensor.v != nullptr) return make_unfactored_step(tensor, report, for_step, kernels);
    if (is_small(tensor)) return make_small_step(tensor, report, for_step, kernels);
    return make_factored_step(tensor, report, for_step, kernels, place);
}

Outcome step(const Tensor* tensors, std::size_t n_tensors, const Options& options,
             TensorReport* reports) {
    const DefaultFloatEnvironment while_this_works;
    return ListStep(tensors, n_tensors, options, reports).take();
}

}  // namespace adafactor
