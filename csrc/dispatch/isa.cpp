#include "dispatch/isa.hpp"

#include <atomic>

#ifdef ADAFACTOR_X86_64
#include <cpuid.h>
#endif

namespace adafactor {
namespace {

#ifdef ADAFACTOR_X86_64
// What x86-64-v3 has besides what every compiler's __builtin_cpu_supports can be asked for.
// Emulators and hypervisors leave out any of it.
bool has_the_rest_of_v3() {
    constexpr unsigned kMovbe = 1u << 22, kF16c = 1u << 29, kLzcnt = 1u << 5;
    unsigned a, b, c = 0, d, extended_c = 0;
    __get_cpuid(1, &a, &b, &c, &d);
    __get_cpuid(0x80000001, &a, &b, &extended_c, &d);
    return (c & kMovbe) && (c & kF16c) && (extended_c & kLzcnt);
}

bool has_v3() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && has_the_rest_of_v3();
}

bool has_v4() {
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

struct Isa {
    const char* name;
    const KernelTable* kernels;
    bool (*is_available)();
};

constexpr Isa kIsas[] = {
    {"baseline", &kernels_baseline, [] { return true; }},
#ifdef ADAFACTOR_X86_64
    {"v3", &kernels_v3, &has_v3},
    {"v4", &kernels_v4, &has_v4},
#endif
};

const Isa* widest_available() {
#ifdef ADAFACTOR_X86_64
    __builtin_cpu_init();  // static initialisers may run before the compiler's own
#endif
    const Isa* widest = kIsas;
    for (const Isa& isa : kIsas)
        if (isa.is_available()) widest = &isa;
    return widest;
}

std::atomic<const Isa*> running{widest_available()};

}  // namespace

std::vector<std::string> built_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : kIsas) names.emplace_back(isa.name);
    return names;
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : kIsas)
        if (isa.is_available()) names.emplace_back(isa.name);
    return names;
}

std::string running_isa() { return running.load()->name; }

bool set_isa(std::string_view name) {
    for (const Isa& isa : kIsas) {
        if (isa.name == name && isa.is_available()) {
            running = &isa;
            return true;
        }
    }
    return false;
}

const KernelTable& running_kernels() { return *running.load()->kernels; }

}  // namespace adafactor
