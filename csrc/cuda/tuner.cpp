#include "cuda/tuner.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda/packed_weights.h"
#include "cuda/workbench.h"
#include "error.h"

namespace uf::cuda {

namespace {

constexpr int repeats = 7;
// A candidate replaces the file's first only if it is faster by more than this, which is what a median of so few
// repeats may be off.
constexpr double least_gain = 0.02;

// Relative difference of two outputs that only differ in the order of sums: a few roundings of what is stored.
double tolerance(const std::string &precision) {
    if (precision == "bf16")
        return 1.6e-2;
    return precision == "float32" ? 1e-5 : 2e-3;
}

constexpr double mask_tolerance = 1e-3; // share of the pixels

double load(const std::byte *data, ElementType type) {
    if (type == ElementType::float32) {
        float value = 0;
        std::memcpy(&value, data, sizeof value);
        return static_cast<double>(value);
    }
    uint16_t bits = 0;
    std::memcpy(&bits, data, sizeof bits);
    return static_cast<double>(type == ElementType::fp16 ? from_fp16(bits) : from_bf16(bits));
}

bool masks_agree(const std::vector<std::byte> &expected, const std::vector<std::byte> &given) {
    size_t different = 0;
    for (size_t i = 0; i < expected.size(); ++i)
        different += expected[i] != given[i] ? 1 : 0;
    return static_cast<double>(different) <= mask_tolerance * static_cast<double>(expected.size());
}

// Elements that neither has written still hold the same poison.
bool tensors_agree(const std::vector<std::byte> &expected, const std::vector<std::byte> &given, ElementType type,
                   double most) {
    const auto item = static_cast<size_t>(element_bytes(type));
    double error = 0, norm = 0;
    for (size_t at = 0; at < expected.size(); at += item) {
        if (std::memcmp(&expected[at], &given[at], item) == 0)
            continue;
        const double truth = load(&expected[at], type), value = load(&given[at], type);
        error += (value - truth) * (value - truth);
    }
    for (size_t at = 0; at < expected.size(); at += item)
        if (const double truth = load(&expected[at], type); std::isfinite(truth))
            norm += truth * truth;
    return error <= most * most * norm; // false where `error` is not a number
}

class Tuner {
  public:
    Tuner(const Program &program, const PassShape &shape) : program_(program), bench_(program, shape) {
        table_.count = shape.count;
        table_.height = shape.height;
        table_.width = shape.width;
    }

    // Goes through the pass once, so that every step meets the inputs that it has in use.
    TuningTable tune() {
        const std::vector<Step> &steps = program_.selection().steps;
        for (size_t i = 0; i < steps.size(); ++i) {
            // The steps of its op that come before it write parts of the same output.
            size_t first = i;
            while (first > 0 && steps[first - 1].op == steps[i].op)
                --first;
            before_.clear();
            for (size_t other = first; other < i; ++other)
                before_.push_back({&steps[other], nullptr});
            for (size_t variant = 0; variant < steps[i].candidates.size(); ++variant)
                if (steps[i].candidates[variant].size() > 1)
                    tune(steps[i], variant);
            set_variant(steps[i], 0);
            run(steps[i], nullptr);
        }
        return std::move(table_);
    }

  private:
    void set_variant(const Step &step, size_t variant) {
        if (step.role == Step::Role::reads_image)
            bench_.set_image(static_cast<PixelType>(variant));
        if (step.role == Step::Role::writes_result)
            bench_.set_result(step.candidates[variant].empty() ? ResultType::probability
                                                               : static_cast<ResultType>(variant));
    }

    // `candidate` null: the first.
    void run(const Step &step, const Candidate *candidate) {
        std::vector<PlannedLaunch> launches = before_;
        launches.push_back({&step, candidate});
        bench_.run(launches);
    }

    std::vector<std::byte> result_of(const Step &step, const Candidate &candidate) {
        bench_.poison_outputs(*step.op);
        run(step, &candidate);
        return bench_.outputs(*step.op);
    }

    bool agree(const Step &step, size_t variant, const std::vector<std::byte> &expected,
               const std::vector<std::byte> &given) const {
        const double most = tolerance(program_.selection().precision);
        if (step.role != Step::Role::writes_result)
            return tensors_agree(expected, given, storage_of(program_.selection().precision), most);
        return static_cast<ResultType>(variant) == ResultType::mask
                   ? masks_agree(expected, given)
                   : tensors_agree(expected, given, ElementType::float32, most);
    }

    void tune(const Step &step, size_t variant) {
        const std::vector<Candidate> &candidates = step.candidates[variant];
        set_variant(step, variant);
        const std::vector<std::byte> expected = result_of(step, candidates[0]);
        std::vector<const Candidate *> right = {&candidates[0]};
        for (size_t i = 1; i < candidates.size(); ++i)
            if (agree(step, variant, expected, result_of(step, candidates[i])))
                right.push_back(&candidates[i]);

        // By turns, so that a change of the GPU's clock meets all of them.
        std::vector<Workbench::Clock> clocks;
        for (const Candidate *const candidate : right)
            clocks.emplace_back(bench_, std::vector<PlannedLaunch>{{&step, candidate}});
        std::vector<std::vector<double>> times(right.size());
        for (int repeat = 0; repeat < repeats; ++repeat)
            for (size_t i = 0; i < right.size(); ++i)
                times[i].push_back(clocks[i].seconds());

        TunedStep tuned;
        tuned.op = candidates[0].kernel->op;
        tuned.step = candidates[0].kernel->step;
        tuned.variant = variant_name(step, variant);
        tuned.winner = candidates[0].kernel->candidate;
        double best = median(times[0]) * (1.0 - least_gain);
        for (size_t i = 0; i < right.size(); ++i) {
            const double seconds = median(times[i]);
            tuned.seconds.emplace_back(right[i]->kernel->candidate, seconds);
            if (i > 0 && seconds < best) {
                best = seconds;
                tuned.winner = right[i]->kernel->candidate;
            }
        }
        table_.steps.push_back(std::move(tuned));
    }

    const Program &program_;
    Workbench bench_;
    std::vector<PlannedLaunch> before_; // steps of the same op that the present one follows
    TuningTable table_;
};

// Without the PTX where there is machine code: it is made for older GPUs, and translating all of it takes a minute.
Selection worth_trying(Selection selection) {
    for (Step &step : selection.steps)
        for (std::vector<Candidate> &candidates : step.candidates)
            if (!candidates.empty() && !candidates[0].code->ptx)
                candidates.erase(std::remove_if(candidates.begin(), candidates.end(),
                                                [](const Candidate &candidate) { return candidate.code->ptx; }),
                                 candidates.end());
    return selection;
}

} // namespace

TuningTable tune(std::shared_ptr<const Plan> plan, std::shared_ptr<const Device> device, const Selection &selection,
                 const PassShape &shape) {
    const Program program(std::move(plan), device, worth_trying(selection), true);
    TuningTable table;
    device->guarded([&] { table = Tuner(program, shape).tune(); });
    return table;
}

} // namespace uf::cuda
