#include "engine/sharded_step.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "dispatch/isa.hpp"
#include "engine/clip_and_scale.hpp"
#include "engine/finish_report.hpp"
#include "engine/scaled_gradient.hpp"

namespace adafactor {

ShardedStep::ShardedStep(const Tensor* tensors, const std::vector<bool>& given,
                         const Options& options, TensorReport* reports, ShardedMemory& memory,
                         const Buckets& buckets, bool exact)
    : tensors_(tensors),
      given_(given),
      options_(options),
      reports_(reports),
      memory_(memory),
      buckets_(buckets),
      exact_(exact) {
    const DefaultFloatEnvironment while_this_works;
    memory_.for_step.reset();
    memory_.for_measure.reset();
    memory_.arrays.begin_step();
    std::size_t bytes = 0;
    for (std::size_t k = 0; k < given_.size(); ++k) {
        if (!given_[k]) continue;
        n_elements_ += size_of(tensors[k].param);
        bytes += size_of(tensors[k].param) *
                 (item_size(tensors[k].param.format) + item_size(tensors[k].grad.format));
    }
    place_of_all_ = place_of(bytes);
    for (std::size_t k = 0; k < given_.size(); ++k) {
        reports_[k] = {};
        const double scale = tensors[k].hyper.grad_scale;
        all_.push_back(is_far_below_1(scale) && given_[k]
                           ? scaled_tensor(k, scale)
                           : make_sharded(tensors[k], given_[k], reports_[k], places()));
    }
    allocate_scratch();
}

ShardedPlaces ShardedStep::places() const {
    return {memory_.for_step, memory_.for_measure, running_kernels(), place_of_all_, exact_};
}

void ShardedStep::allocate_scratch() {
    std::size_t size = 0;
    for (const auto& tensor : all_)
        for (const TensorStep* step : tensor->steps()) size = std::max(size, step->scratch_size());
    size = (size + kPadding - 1) / kPadding * kPadding;
    const int threads = team_size(n_elements_, options_.threads);
    team_ = Team(threads, memory_.for_step.take<char>(size * std::size_t(threads)), size);
}

// Of a tensor whose gradient is given.
std::unique_ptr<ShardedTensor> ShardedStep::scaled_tensor(std::size_t k, double scale) {
    int exponent = 0;
    const int threads = team_size(size_of(tensors_[k].param), options_.threads);
    const Tensor& scaled =
        with_scaled_gradient(tensors_[k], scale, threads, memory_.for_step, exponent);
    auto made = make_sharded(scaled, given_[k], reports_[k], places());
    made->note_grad_exponent(exponent);
    return made;
}

// Those that are to be measured again take part in the next round, the others are returned. All
// ranks do the same.
std::vector<ShardedTensor*> ShardedStep::scale_grads(double ratio) {
    std::vector<ShardedTensor*> decided;
    bool any_made = false;
    for (ShardedTensor*& tensor : stepping_) {
        const std::size_t k = position_of(*tensor);
        if (is_far_below_1(tensor->grad_scale() * ratio)) {
            any_made = true;
            all_[k] = scaled_tensor(k, tensors_[k].hyper.grad_scale * ratio);
            tensor = all_[k].get();
            taking_part_.push_back({tensor, true, false});
        } else if (tensor->scale_grad(ratio)) {
            taking_part_.push_back({tensor, true, tensor->anticipates_second()});
        } else {
            decided.push_back(tensor);
        }
    }
    if (any_made) allocate_scratch();
    for (ShardedTensor* tensor : decided)
        tensor->report().fault = tensor->decide(team_, options_.propagate);
    return decided;
}

ShardedStep::~ShardedStep() = default;

std::vector<double> ShardedStep::mute_round(const Tensor* tensors, std::size_t n_tensors,
                                            const Buckets& buckets, bool exact) {
    Scratch none;
    const ShardedPlaces places{none, none, running_kernels(), Place::memory, exact};
    std::vector<std::size_t> n_max, lengths;
    for (std::size_t k = 0; k < n_tensors; ++k) {
        TensorReport report;
        const auto tensor = make_sharded(tensors[k], false, report, places);
        n_max.push_back(tensor->n_max());
        lengths.push_back(tensor->bucket_length());
    }
    const auto end = n_max.begin() + std::ptrdiff_t(buckets.end_of(0, lengths));
    return std::vector<double>(std::accumulate(n_max.begin(), end, buckets.n_header_max), kNeutral);
}

// Of the maximum that tells of faults.
Exchange ShardedStep::exchange(Stage stage) {
    stage_ = stage;
    return {{{fault_, true}}, 1};
}

Exchange ShardedStep::end() {
    stage_ = Stage::done;
    for (ShardedTensor* tensor : stepping_) {
        const double n = tensor->part().n_elements();
        if (n == 0) tensor->report() = {};  // as of a tensor without a step
        finish_report(tensor->report(), n, tensors_[position_of(*tensor)].hyper.grad_scale);
    }
    return {};
}

std::size_t ShardedStep::position_of(ShardedTensor& tensor) const {
    return std::size_t(&tensor.report() - reports_);
}

Exchange ShardedStep::next(bool in_slices) {
    const DefaultFloatEnvironment while_this_works;
    switch (stage_) {
        case Stage::begin:
            for (const auto& tensor : all_) taking_part_.push_back({tensor.get(), true, false});
            return begin_round(in_slices);
        case Stage::round: {
            Exchange exchange = round_->next(team_, in_slices);
            return round_->is_over() ? after_round(in_slices) : exchange;
        }
        case Stage::look:
            return after_look();
        case Stage::index:
            return after_index();
        case Stage::value: {
            const std::vector<double>& told = *fault_;
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

Exchange ShardedStep::begin_round(bool in_slices) {
    round_.emplace(taking_part_, buckets_, memory_.arrays, memory_.for_measure);
    stage_ = Stage::round;
    return round_->next(team_, in_slices);
}

void ShardedStep::note_norm() {
    double sum = 0;
    for (ShardedTensor* tensor : stepping_) {
        const double scale = tensors_[position_of(*tensor)].hyper.grad_scale;
        sum += tensor->report().grad_sq * (scale * scale);
    }
    outcome_.outcome.grad_norm = one_nan(std::sqrt(sum));
}

Exchange ShardedStep::after_round(bool in_slices) {
    if (ShardedTensor* const tensor = round_->disagreed()) {
        outcome_.presence_differs = tensor->presence_differs();
        outcome_.grad_format_differs = tensor->grad_format_differs();
        outcome_.outcome.tensor = position_of(*tensor);
        return end();
    }
    std::vector<ShardedTensor*> decided;
    for (const TakesPart& each : taking_part_)
        if (each.first && each.tensor->is_given_anywhere()) decided.push_back(each.tensor);
    taking_part_.clear();
    for (ShardedTensor* tensor : decided) tensor->finish_grad_sq();
    if (is_first_) {
        stepping_ = decided;
        note_norm();
    }
    // Before they are scaled, only what has no norm is a fault.
    const bool may_clip = is_first_ && std::isfinite(options_.max_grad_norm);
    ShardedTensor* postponed = nullptr;
    for (ShardedTensor* tensor : decided) {
        Fault fault = tensor->decide(team_, options_.propagate);
        if (fault == Fault::none && tensor->has_lost_grad_sq()) fault = Fault::grad;
        tensor->report().fault = fault;
        if (may_clip && !options_.propagate && depends_on_scale(fault)) {
            if (postponed == nullptr) postponed = tensor;
            continue;
        }
        if (fault != Fault::none && !options_.propagate) return faulty(fault, position_of(*tensor));
    }
    if (is_first_) {
        is_first_ = false;
        buckets_.n_header_max = buckets_.n_header_sum = 0;
        const double norm = outcome_.outcome.grad_norm;
        if (std::isfinite(options_.skip_norm_above)) {
            outcome_.outcome.is_spike = std::isfinite(norm) && norm > options_.skip_norm_above;
            if (outcome_.outcome.is_spike) return end();
        }
        const double ratio =
            std::isfinite(options_.max_grad_norm) ? options_.max_grad_norm / (norm + 1e-6) : 1;
        if (!(ratio >= 1)) {
            decided = scale_grads(ratio);
        } else if (postponed != nullptr) {
            return faulty(postponed->report().fault, position_of(*postponed));
        }
    }
    for (ShardedTensor* tensor : decided)
        if (tensor->needs_second()) taking_part_.push_back({tensor, false, true});
    if (taking_part_.empty()) return finish();
    return begin_round(in_slices);
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
    team_.for_tasks(stepping_.size(), Order::forwards,
                    [&](std::size_t k, int, char*) { stepping_[k]->prepare_apply(); });
    if (!any_looks) return end();
    fault_ = memory_.arrays.take(stepping_.size(), 0);
    for (std::size_t k = 0; k < stepping_.size(); ++k)
        if (stepping_[k]->needs_look()) (*fault_)[k] = double(int(stepping_[k]->look(team_)));
    return exchange(Stage::look);
}

Exchange ShardedStep::after_look() {
    for (std::size_t k = 0; k < stepping_.size(); ++k) {
        const auto fault = Fault(int((*fault_)[k]));
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
    fault_ = memory_.arrays.take(1, own_index_ < 0 ? kNeutral : -double(own_index_));
    return exchange(Stage::index);
}

Exchange ShardedStep::after_index() {
    const double found = fault_->front();
    outcome_.outcome.index = found == kNeutral ? -1 : std::ptrdiff_t(-found);
    if (outcome_.outcome.index < 0) return end();
    fault_ = memory_.arrays.take(4, kNeutral);
    std::vector<double>& told = *fault_;
    if (own_index_ == outcome_.outcome.index) {
        told[0] = std::isnan(own_value_);
        told[1] = std::isinf(own_value_) && own_value_ > 0;
        told[2] = std::isinf(own_value_) && own_value_ < 0;
        if (std::isfinite(own_value_)) told[3] = own_value_;
    }
    return exchange(Stage::value);
}

void ShardedStep::apply() {
    const DefaultFloatEnvironment while_this_works;
    for (ShardedTensor* tensor : stepping_) tensor->begin_apply();
    const ShardedTasks tasks(stepping_,
                             [](const TensorStep& step) { return step.n_apply_tasks(); });
    tasks.run(team_, Order::backwards, 0, tasks.size(),
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
