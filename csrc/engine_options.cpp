#include "engine_options.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <set>
#include <vector>

#include "cpu/cpu_executor.h"
#include "cpu/cpu_features.h"
#include "cpu_quota.h"
#include "cuda/cuda_executor.h"
#include "error.h"
#include "message.h"

namespace uf {

namespace {

constexpr int most_threads = 1024;

// Physical cores that this process may run on, at least 1.
int physical_cores() {
    // Room for more processors than Linux supports today.
    constexpr size_t most_processors = 1 << 14;
    cpu_set_t *allowed = CPU_ALLOC(most_processors);
    if (allowed == nullptr)
        return 1;
    const size_t bytes = CPU_ALLOC_SIZE(most_processors);
    std::set<std::string> cores;
    if (sched_getaffinity(0, bytes, allowed) == 0)
        for (size_t processor = 0; processor < most_processors; ++processor) {
            if (!CPU_ISSET_S(processor, bytes, allowed))
                continue;
            // Hyperthreads of one core show the same list of siblings.
            std::ifstream file(message("/sys/devices/system/cpu/cpu", processor, "/topology/thread_siblings_list"));
            std::string siblings;
            std::getline(file, siblings);
            cores.insert(siblings.empty() ? message("processor ", processor) : siblings);
        }
    CPU_FREE(allowed);
    const int count = std::clamp<int>(static_cast<int>(cores.size()), 1, most_threads);
    return std::min(count, processors_of_quota("/sys/fs/cgroup"));
}

// "2,4-7" as the numbers that it names.
std::vector<int> processors_in(const std::string &list) {
    std::vector<int> processors;
    const auto refuse = [&]() -> int {
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message("options.thread_affinity is ", in_quotes(list),
                            ", expected processors as in \"2,4-7\", up to ", ThreadSchedule::most_processors - 1));
    };
    const char *next = list.data(), *const end = next + list.size();
    const auto number = [&] {
        int value = 0;
        const auto [behind, error] = std::from_chars(next, end, value);
        next = behind;
        return error == std::errc() && value >= 0 && value < ThreadSchedule::most_processors ? value : refuse();
    };
    while (true) {
        const int first = number();
        int last = first;
        if (next != end && *next == '-') {
            ++next;
            last = number();
        }
        if (last < first)
            refuse();
        for (int processor = first; processor <= last; ++processor)
            processors.push_back(processor);
        if (next == end)
            return processors;
        if (*next++ != ',')
            refuse();
    }
}

} // namespace

int checked_threads(const EngineOptions &options) {
    if (options.threads < 0 || options.threads > most_threads)
        throw Error(UF_ERR_INVALID_ARGUMENT, message("options.threads is ", options.threads,
                                                     ", accepted are 0 (one per "
                                                     "physical core) to ",
                                                     most_threads));
    if (options.device == "cpu-reference")
        return 1;
    return options.threads != 0 ? options.threads : physical_cores();
}

ThreadSchedule checked_schedule(const EngineOptions &options) {
    ThreadSchedule schedule;
    if (!options.thread_affinity.empty())
        schedule.processors = processors_in(options.thread_affinity);
    if (options.thread_priority < 0 || options.thread_priority > 99)
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message("options.thread_priority is ", options.thread_priority,
                            ", accepted are 1 to 99 (SCHED_FIFO) and 0 (as the thread that opens the engine)"));
    schedule.priority = static_cast<int>(options.thread_priority);
    return schedule;
}

std::chrono::milliseconds checked_pause(const EngineOptions &options) {
    constexpr int64_t longest = 60000;
    if (options.keep_warm_ms < 0 || options.keep_warm_ms > longest)
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message("options.keep_warm_ms is ", options.keep_warm_ms, ", accepted are 1 to ", longest,
                            " (milliseconds of pause) and 0 (nothing is done in pauses)"));
    return std::chrono::milliseconds(options.keep_warm_ms);
}

Choice choose_executor(const std::shared_ptr<Plan> &plan, const std::shared_ptr<ThreadPool> &threads,
                       const EngineOptions &options) {
    const std::set<std::string> precisions = {"auto", "float32", "bf16", "fp16", "int8"};
    if (precisions.count(options.precision) == 0)
        throw Error(UF_ERR_INVALID_ARGUMENT, message("options.precision is ", in_quotes(options.precision),
                                                     ", accepted are auto, float32, bf16, fp16 and int8"));
    const KernelTable &kernels =
        choose_kernels(options.cpu_isa); // refuses a wrong name on every device, as a lost GPU leaves the CPU
    const bool int8 = plan->precision == "int8";
    if (int8 ? options.precision != "auto" && options.precision != "int8" : options.precision == "int8")
        throw Error(UF_ERR_UNSUPPORTED,
                    message("options.precision is ", options.precision, ", but the file was frozen for ",
                            plan->precision, "; use auto, or freeze the network with precision ", options.precision));
    if (options.device == "cpu-reference") {
        if (options.precision != "auto" && options.precision != "float32" && !int8)
            throw Error(UF_ERR_UNSUPPORTED,
                        message("device cpu-reference computes in float32, not in ", options.precision));
        return {make_reference_executor(plan), "asked for"};
    }
    if (options.device == "cuda" || options.device.rfind("cuda:", 0) == 0) {
        if (options.refuse_embedded_code)
            throw Error(UF_ERR_UNSUPPORTED, message("device ", in_quotes(options.device),
                                                    " runs GPU code of the file, which the "
                                                    "options refuse; use device cpu, or accept the code"));
        if (int8)
            throw Error(UF_ERR_UNSUPPORTED, message("device ", in_quotes(options.device),
                                                    " cannot run an int8 file, which is for the CPU; use device cpu, "
                                                    "or freeze the network with precision fp16"));
        return {make_cuda_executor(plan, options.device, options.precision), "asked for"};
    }
    if (options.device != "auto" && options.device != "cpu")
        throw Error(UF_ERR_INVALID_ARGUMENT, message("options.device is ", in_quotes(options.device),
                                                     ", accepted are auto, cpu, cpu-reference, cuda and cuda:N"));
    std::string reason = options.device == "cpu" ? "asked for" : "GPU code in the file is refused";
    if (options.device == "auto" && int8)
        reason = "an int8 file is for the CPU";
    else if (options.device == "auto" && !options.refuse_embedded_code) {
        try {
            auto executor = make_cuda_executor(plan, "cuda", options.precision);
            return {std::move(executor), "a GPU that can run this file"};
        } catch (const Error &error) {
            reason = error.what();
        }
    }
    if (options.precision == "fp16" && kernels.winograd->product_fp16 == nullptr)
        throw Error(UF_ERR_UNSUPPORTED,
                    message("precision fp16 needs a GPU, or a CPU with Arm's FP16, and the CPU's "
                            "instruction set in use is ",
                            kernels.isa, "; here, use auto or float32", options.device == "auto" ? "; " + reason : ""));
    return {make_cpu_executor(plan, threads, options.precision, options.cpu_isa, plan.get()), reason};
}

} // namespace uf
