#include "cuda/kernel_selection.h"

#include <algorithm>
#include <initializer_list>
#include <set>

#include "error.h"
#include "message.h"

namespace uf::cuda {

namespace {

// From 90 on machine code is for one capability only (Triton compiles for "sm_90a"); before, also for later minor ones.
bool fits(const KernelCode &code, int capability) {
    if (code.ptx)
        return code.capability <= capability;
    if (code.capability >= 90)
        return code.capability == capability;
    return code.capability / 10 == capability / 10 && code.capability <= capability;
}

// What would make the file run on the device: the advice of an error message.
std::string advice(int capability) {
    if (capability < 80)
        return "GPU code is made for compute capability 8.0 and newer; use device \"cpu\"";
    // As unet_fast/kernels/aot.py can compile; other GPUs translate PTX.
    bool known = false;
    for (const int architecture : {80, 86, 87, 89, 90, 100, 103, 120, 121})
        known = known || architecture == capability;
    return message("freeze it with targets=(\"cpu\", \"", known ? message("sm_", capability) : "compute_80", "\")");
}

class Selector {
  public:
    Selector(const Plan &plan, const Device &device, const std::string &precision)
        : plan_(plan), device_(device), precision_(precision) {}

    Selection select() {
        Selection selection{precision_, {}};
        for (size_t op = 0; op < plan_.ops.size(); ++op) {
            int steps = 1;
            for (const Kernel &kernel : plan_.kernels->kernels)
                if (kernel.op == op && kernel.precision == precision_)
                    steps = std::max(steps, kernel.step + 1);
            for (int step = 0; step < steps; ++step)
                selection.steps.push_back(select_step(op, step));
        }
        return selection;
    }

  private:
    Step select_step(size_t op, int number) {
        Step step;
        step.op = &plan_.ops[op];
        if (reads_image(*step.op))
            step.role = Step::Role::reads_image;
        if (writes_result(*step.op))
            step.role = Step::Role::writes_result;
        for (size_t variant = 0; variant < step.candidates.size(); ++variant) {
            if (!wanted(step.role, variant))
                continue;
            for (const Kernel &kernel : plan_.kernels->kernels)
                if (kernel.op == op && kernel.step == number && kernel.precision == precision_ &&
                    matches(kernel, variant))
                    add(kernel, step.candidates[variant]);
            if (step.candidates[variant].empty())
                throw_nothing_fits(step, variant);
            std::stable_sort(step.candidates[variant].begin(), step.candidates[variant].end(),
                             [](const Candidate &a, const Candidate &b) {
                                 return std::pair(a.code->ptx, a.code->rank) < std::pair(b.code->ptx, b.code->rank);
                             });
        }
        return step;
    }

    bool wanted(Step::Role role, size_t variant) const {
        switch (role) {
        case Step::Role::reads_image:
            return true;
        case Step::Role::writes_result:
            return variant == static_cast<size_t>(ResultType::probability) ||
                   (variant == static_cast<size_t>(ResultType::mask) && plan_.has_mask());
        case Step::Role::inner:
            break;
        }
        return variant == 0;
    }

    static bool matches(const Kernel &kernel, size_t variant) {
        if (kernel.pixel)
            return static_cast<size_t>(*kernel.pixel) == variant;
        return !kernel.result || static_cast<size_t>(*kernel.result) == variant;
    }

    // Adds the kernel with its best code for the device; notes what stands in the way where there is none.
    void add(const Kernel &kernel, std::vector<Candidate> &candidates) {
        const KernelCode *best = nullptr;
        for (const KernelCode &code : kernel.codes) {
            targets_.insert(code.target());
            if (!fits(code, device_.capability()))
                continue;
            if (code.driver > device_.driver_version())
                driver_ = driver_ == 0 ? code.driver : std::min(driver_, code.driver);
            else if (code.shared_bytes > device_.shared_bytes())
                shared_ = code.shared_bytes;
            else if (best == nullptr || std::pair(!code.ptx, code.capability) > std::pair(!best->ptx, best->capability))
                best = &code;
        }
        if (best != nullptr)
            candidates.push_back({&kernel, best});
    }

    [[noreturn]] void throw_nothing_fits(const Step &step, size_t variant) const {
        std::string why;
        if (driver_ != 0) {
            const auto version = [](int number) { return message(number / 1000, '.', number % 1000 / 10); };
            why = message("it needs a driver for CUDA ", version(driver_), " or newer, this machine has one for CUDA ",
                          version(device_.driver_version()), "; update the NVIDIA driver");
        } else if (shared_ != 0) {
            why = message("it needs ", shared_, " bytes of shared memory, this GPU has ", device_.shared_bytes());
        } else {
            std::string targets;
            for (const std::string &target : targets_)
                targets += (targets.empty() ? "" : ", ") + target;
            why = message(targets.empty() ? "the file has none" : "the file has " + targets, "; ",
                          advice(device_.capability()));
        }
        std::string what = message("op ", in_quotes(step.op->name));
        if (step.role == Step::Role::reads_image)
            what += std::array{" with uint8 pixels", " with uint16 pixels", " with float32 pixels"}[variant];
        if (step.role == Step::Role::writes_result)
            what += std::array{" to a mask", " to a probability"}[variant];
        throw Error(UF_ERR_UNSUPPORTED, message("no ", precision_, " GPU code of this file for ", what, " runs on ",
                                                device_.description(), ": ", why));
    }

    const Plan &plan_;
    const Device &device_;
    const std::string &precision_;
    std::set<std::string> targets_; // all that were looked at, for the message
    int driver_ = 0, shared_ = 0;   // what would fit, but for these
};

} // namespace

const std::vector<Candidate> &Step::of(PixelType pixel, ResultType result) const {
    switch (role) {
    case Role::reads_image:
        return candidates[static_cast<size_t>(pixel)];
    case Role::writes_result:
        return candidates[static_cast<size_t>(result)];
    case Role::inner:
        break;
    }
    return candidates[0];
}

Selection select_kernels(const Plan &plan, const Device &device, const std::string &precision) {
    if (plan.kernels == nullptr || plan.kernels->kernels.empty())
        throw Error(UF_ERR_UNSUPPORTED, message("the file has no GPU code to run on ", device.description(), "; ",
                                                advice(device.capability())));
    std::set<std::string> present;
    for (const Kernel &kernel : plan.kernels->kernels)
        present.insert(kernel.precision);
    if (precision != "auto") {
        if (present.count(precision) == 0) {
            std::string others;
            for (const std::string &other : present)
                others += (others.empty() ? "" : ", ") + other;
            throw Error(UF_ERR_UNSUPPORTED, message("precision ", in_quotes(precision),
                                                    " was asked for, but the GPU code of this "
                                                    "file computes in ",
                                                    others, "; freeze it with that precision, or ask for \"auto\""));
        }
        return Selector(plan, device, precision).select();
    }
    std::string failure;
    for (const std::string &name :
         {plan.precision, std::string("fp16"), std::string("bf16"), std::string("tf32"), std::string("float32")}) {
        if (present.erase(name) == 0)
            continue;
        try {
            return Selector(plan, device, name).select();
        } catch (const Error &error) {
            if (failure.empty())
                failure = error.what();
        }
    }
    throw Error(UF_ERR_UNSUPPORTED, failure);
}

} // namespace uf::cuda
