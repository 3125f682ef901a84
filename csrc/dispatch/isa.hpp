// Instruction sets: which are built in, which this machine has, which one runs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernel/kernels.hpp"

namespace adafactor {

std::vector<std::string> built_isas();      // narrowest first
std::vector<std::string> available_isas();  // those of them that this machine runs
std::string running_isa();

// Switches every later step to an available set; false if there is none of that name.
bool set_isa(std::string_view name);

const KernelTable& running_kernels();

}  // namespace adafactor
