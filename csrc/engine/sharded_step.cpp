#include "engine/sharded_step.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "dispatch/isa.hpp"
#include "engine/finish_report.hpp"

namespace adafactor {
namespace {

// Of this size, filled; another array than the last one's where somebody has that still.
std::vector<double>& filled(RoundArray& array, std::size_t size, double value) {
    if (array == nullptr || array.use_count() > 1) array = std::make_shared<std::vector<double>>();
    array->assign(size, value);
    return *array;
}

}  // namespace

ShardedStep::ShardedStep(const Tensor* tensors, const std::vector<bool>& given,
                         const Options& options, TensorReport* reports, ShardedMemory& memory,
                         std::size_t n_header_max, std::size_t n_header_sum, bool exact)
    : given_(given),
      options_(options),
      reports_(reports),
      memory_(memory),
      n_header_max_(n_header_max),
      n_header_sum_(n_header_sum) {
    const DefaultFloatEnvironment while_this_works;
    memory_.for_step.reset();
    memory_.for_measure.reset();
    std::size_t bytes = 0, elements = 0;
    for (std::size_t k = 0; k < given_.size(); ++k) {
        if (!given_[k]) continue;
        elements += size_of(tensors[k].param);
        bytes += size_of(tensors[k].param) *
                 (item_size(tensors[k].param.format) + item_size(tensors[k].grad.format));
    }
    const ShardedPlaces places{memory_.for_step, memory_.for_measure, running_kernels(),
                               place_of(bytes), exact};
    std::size_t scratch_size = 0, n_groups = 1;
    for (std::size_t k = 0; k < given_.size(); ++k) {
        reports_[k] = {};
        n_groups = std::max(n_groups, tensors[k].part->n_groups());
        all_.push_back(make_sharded(tensors[k], given_[k], reports_[k], places));
        for (const TensorStep* step : all_.back()->steps())
            scratch_size = std::max(scratch_size, step->scratch_size());
    }
    memory_.group_sums.resize(n_groups);
    group_sums_.resize(n_groups);
    scratch_size = (scratch_size + kPadding - 1) / kPadding * kPadding;
    const int threads = team_size(elements, options_.threads);
    team_ = Team(threads, memory_.for_step.take<char>(scratch_size * std::size_t(threads)),
                 scratch_size);
}

ShardedStep::~ShardedStep() = default;

std::vector<double> ShardedStep::mute_round(const Tensor* tensors, std::size_t n_tensors,
                                            std::size_t n_header_max, bool exact) {
    Scratch none;
    const ShardedPlaces places{none, none, running_kernels(), Place::memory, exact};
    std::size_t n = n_header_max;
    for (std::size_t k = 0; k < n_tensors; ++k) {
        TensorReport report;
        n += make_sharded(tensors[k], false, report, places)->n_max();
    }
    return std::vector<double>(n, kNeutral);
}

// Calls body(position in `tensors`), which must not throw, for all of these.
template <class Body>
void ShardedStep::for_each(const std::vector<ShardedTensor*>& tensors, const Body& body) {
    team_.for_tasks(tensors.size(), Order::forwards, [&](std::size_t k, int, char*) { body(k); });
}

template <class Count, class Body>
void ShardedStep::for_all_tasks(const std::vector<ShardedTensor*>& tensors, Order order,
                                const Count& count, const Body& body) {
    std::size_t n = 0;
    tasks_.clear();
    for (ShardedTensor* tensor : tensors)
        for (TensorStep* step : tensor->steps()) {
            tasks_.push_back({step, n});
            n += count(*step);
        }
    team_.for_tasks(n, order, [&](std::size_t task, int, char* scratch) {
        const auto next =
            std::upper_bound(tasks_.begin(), tasks_.end(), task,
                             [](std::size_t at, const Tasks& tasks) { return at < tasks.first; });
        body(*std::prev(next)->step, task - std::prev(next)->first, scratch);
    });
}

Exchange ShardedStep::exchange(const RoundArray& array, bool is_max, Stage stage) {
    stage_ = stage;
    return {{{array, is_max}}, 1};
}

Exchange ShardedStep::end() {
    stage_ = Stage::done;
    for (ShardedTensor* tensor : stepping_) {
        const double n = tensor->part().n_elements();
        if (n == 0) tensor->report() = {};  // as of a tensor without a step
        finish_report(tensor->report(), n, tensor->tensor().hyper.grad_scale);
    }
    return {};
}

std::size_t ShardedStep::position_of(ShardedTensor& tensor) const {
    return std::size_t(&tensor.report() - reports_);
}

Exchange ShardedStep::next() {
    const DefaultFloatEnvironment while_this_works;
    switch (stage_) {
        case Stage::begin:
            for (const auto& tensor : all_) first_.push_back(tensor.get());
            measure();
            return put_max();
        case Stage::max:
            return after_max();
        case Stage::sum:
            return after_sum();
        case Stage::look:
            return after_look();
        case Stage::index:
            return after_index();
        case Stage::value: {
            const std::vector<double>& told = *memory_.fault;
            outcome_.value = told[0] == 1   ? std::numeric_limits<double>::quiet_NaN()
                             : told[1] == 1 ? std::numeric_limits<double>::infinity()
                             : told[2] == 1 ? -std::numeric_limits<double>::infinity()
                                            : told[3];
            return end();
        }
        default:
            return {};
    }
}

// Those whose sums are exchanged for the first time, or again.
void ShardedStep::measure() {
    for (const ShardedTensor* tensor : first_)
        for (TensorStep* step : tensor->steps())
            if (!step->is_measured()) step->allocate_sums(memory_.for_measure);
    for_all_tasks(
        first_, Order::forwards, [](const TensorStep& step) { return step.n_measure_tasks_left(); },
        [](TensorStep& step, std::size_t task, char* scratch) {
            if (!step.is_measured()) step.measure(task, scratch);
            step.look_at_due(task);
        });
    for (ShardedTensor* tensor : first_)
        if (tensor->is_given()) tensor->finish_measure(team_);
}

Exchange ShardedStep::put_max() {
    std::size_t n = is_first_ ? n_header_max_ : 0;
    for (const ShardedTensor* tensor : first_) n += tensor->n_max();
    for (const ShardedTensor* tensor : second_) n += tensor->n_second_max();
    double* to = filled(memory_.max, n, kNeutral).data() + (is_first_ ? n_header_max_ : 0);
    for (const ShardedTensor* tensor : first_) {
        tensor->put_max(to);
        to += tensor->n_max();
    }
    for (const ShardedTensor* tensor : second_) {
        tensor->put_second_max(to);
        to += tensor->n_second_max();
    }
    return exchange(memory_.max, true, Stage::max);
}

Exchange ShardedStep::after_max() {
    const double* from = memory_.max->data() + (is_first_ ? n_header_max_ : 0);
    for (ShardedTensor* tensor : first_) {
        tensor->take_max(from);
        from += tensor->n_max();
        if (outcome_.is_fault()) continue;
        outcome_.presence_differs = tensor->presence_differs();
        outcome_.grad_format_differs = tensor->grad_format_differs();
        if (outcome_.is_fault()) outcome_.outcome.tensor = position_of(*tensor);
    }
    if (outcome_.is_fault()) return end();
    for (ShardedTensor* tensor : second_) {
        tensor->take_second_max(from);
        from += tensor->n_second_max();
    }
    if (is_first_) {
        const auto is_absent = [](ShardedTensor* tensor) { return !tensor->is_given_anywhere(); };
        first_.erase(std::remove_if(first_.begin(), first_.end(), is_absent), first_.end());
        stepping_ = first_;
    }
    return put_sum();
}

Exchange ShardedStep::put_sum() {
    std::size_t n = is_first_ ? n_header_sum_ : 0;
    std::vector<std::size_t> of_groups(memory_.group_sums.size(), 0);
    place_.clear();
    for (ShardedTensor* tensor : first_) {
        tensor->add_up(team_);
        tensor->place_in_groups(of_groups);
        place_.push_back(n);
        n += tensor->n_sum();
    }
    for (ShardedTensor* tensor : second_) {
        tensor->add_up_second(team_);
        place_.push_back(n);
        n += tensor->n_second_sum();
    }
    // Sums of a round A stay where they are until the step is done.
    RoundArray& array = is_first_        ? memory_.sum
                        : first_.empty() ? memory_.second_sum
                                         : memory_.sum_again;
    double* const to = filled(array, n, 0).data();
    for_each(first_, [&](std::size_t k) { first_[k]->put_sum(to + place_[k]); });
    for (std::size_t k = 0; k < second_.size(); ++k)
        second_[k]->put_second_sum(to + place_[first_.size() + k]);
    summed_ = array;
    Exchange sums = exchange(array, false, Stage::sum);
    put_group_sums(of_groups, sums);
    return sums;
}

// All ranks of a group know that it has something to add up. They begin their groups' sums in one
// order, which their numbers follow.
void ShardedStep::put_group_sums(const std::vector<std::size_t>& sizes, Exchange& exchange) {
    for (std::size_t group = 0; group < sizes.size(); ++group) {
        if (sizes[group] == 0) continue;
        RoundArray& array = memory_.group_sums[group];
        group_sums_[group] = filled(array, sizes[group], 0).data();
        exchange.begins.push_back({array, false, int(group)});
        ++exchange.n_over;
    }
    for_each(first_, [&](std::size_t k) { first_[k]->put_in_groups(group_sums_); });
}

void ShardedStep::note_norm() {
    double sum = 0;
    for (ShardedTensor* tensor : stepping_) {
        const double scale = tensor->tensor().hyper.grad_scale;
        sum += tensor->report().grad_sq * (scale * scale);
    }
    outcome_.outcome.grad_norm = one_nan(std::sqrt(sum));
}

Exchange ShardedStep::after_sum() {
    double* const from = summed_->data();
    for_each(first_, [&](std::size_t k) {
        first_[k]->take_from_groups(group_sums_);
        first_[k]->take_sum(from + place_[k]);
    });
    for (std::size_t k = 0; k < second_.size(); ++k)
        second_[k]->take_second_sum(from + place_[first_.size() + k]);
    std::vector<ShardedTensor*> decided;
    decided.swap(first_);
    second_.clear();
    if (is_first_) note_norm();
    for (ShardedTensor* tensor : decided) {
        const Fault fault = tensor->decide(team_, options_.propagate);
        tensor->report().fault = fault;
        if (fault != Fault::none && !options_.propagate) return faulty(fault, position_of(*tensor));
    }
    if (is_first_) {
        is_first_ = false;
        const double norm = outcome_.outcome.grad_norm;
        if (std::isfinite(options_.skip_norm_above)) {
            outcome_.outcome.is_spike = std::isfinite(norm) && norm > options_.skip_norm_above;
            if (outcome_.outcome.is_spike) return end();
        }
        const double ratio =
            std::isfinite(options_.max_grad_norm) ? options_.max_grad_norm / (norm + 1e-6) : 1;
        if (!(ratio >= 1)) {
            std::vector<ShardedTensor*> scaled;
            scaled.swap(decided);
            for (ShardedTensor* tensor : scaled)
                (tensor->scale_grad(ratio) ? first_ : decided).push_back(tensor);
            for (ShardedTensor* tensor : decided)
                tensor->report().fault = tensor->decide(team_, options_.propagate);
        }
    }
    for (ShardedTensor* tensor : decided)
        if (tensor->needs_second()) {
            tensor->measure_second(team_);
            second_.push_back(tensor);
        }
    if (first_.empty() && second_.empty()) return finish();
    if (!first_.empty()) measure();
    for (ShardedTensor* tensor : first_)
        if (tensor->anticipates_second(team_)) second_.push_back(tensor);
    return put_max();
}

Exchange ShardedStep::finish() {
    bool any_looks = false;
    for (ShardedTensor* tensor : stepping_) {
        Fault fault = tensor->finish(options_.propagate);
        if (fault == Fault::none && !options_.propagate && tensor->report().fault == Fault::none) {
            fault = tensor->check();
            any_looks = any_looks || tensor->needs_look();
        }
        if (fault != Fault::none) tensor->report().fault = fault;
        if (fault != Fault::none && !options_.propagate) return faulty(fault, position_of(*tensor));
    }
    for_each(stepping_, [&](std::size_t k) { stepping_[k]->prepare_apply(); });
    if (!any_looks) return end();
    std::vector<double>& faults = filled(memory_.fault, stepping_.size(), 0);
    for (std::size_t k = 0; k < stepping_.size(); ++k)
        if (stepping_[k]->needs_look()) faults[k] = double(int(stepping_[k]->look(team_)));
    return exchange(memory_.fault, true, Stage::look);
}

Exchange ShardedStep::after_look() {
    for (std::size_t k = 0; k < stepping_.size(); ++k) {
        const auto fault = Fault(int((*memory_.fault)[k]));
        if (fault == Fault::none) continue;
        stepping_[k]->report().fault = fault;
        return faulty(fault, position_of(*stepping_[k]));
    }
    return end();
}

// The first bad element of all ranks: they take the maximum of its negated index.
Exchange ShardedStep::faulty(Fault fault, std::size_t tensor) {
    outcome_.outcome.fault = fault;
    outcome_.outcome.tensor = tensor;
    outcome_.has_unsound_state = all_[tensor]->has_unsound_state();
    own_index_ = all_[tensor]->bad_index(fault, own_value_);
    filled(memory_.fault, 1, own_index_ < 0 ? kNeutral : -double(own_index_));
    return exchange(memory_.fault, true, Stage::index);
}

Exchange ShardedStep::after_index() {
    const double found = memory_.fault->front();
    outcome_.outcome.index = found == kNeutral ? -1 : std::ptrdiff_t(-found);
    if (outcome_.outcome.index < 0) return end();
    std::vector<double>& told = filled(memory_.fault, 4, kNeutral);
    if (own_index_ == outcome_.outcome.index) {
        told[0] = std::isnan(own_value_);
        told[1] = std::isinf(own_value_) && own_value_ > 0;
        told[2] = std::isinf(own_value_) && own_value_ < 0;
        if (std::isfinite(own_value_)) told[3] = own_value_;
    }
    return exchange(memory_.fault, true, Stage::value);
}

void ShardedStep::apply() {
    const DefaultFloatEnvironment while_this_works;
    for (ShardedTensor* tensor : stepping_) tensor->begin_apply();
    for_all_tasks(
        stepping_, Order::backwards, [](const TensorStep& step) { return step.n_apply_tasks(); },
        [](TensorStep& step, std::size_t task, char* scratch) { step.apply(task, scratch); });
    for (ShardedTensor* tensor : stepping_) {
        tensor->end_apply();
        tensor->carry_bounds(options_.propagate);
        if (options_.propagate)
            for (TensorStep* step : tensor->steps()) step->make_nans_one(team_);
        tensor->report().stepped = true;
    }
}

}  // namespace adafactor
