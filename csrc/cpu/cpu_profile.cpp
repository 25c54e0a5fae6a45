#include "cpu/cpu_profile.h"

#include <algorithm>
#include <random>
#include <vector>

namespace uf {

namespace {

// A full batch of random uint8 images, and memory for its results.
struct TrialPass {
    // Beside a context of `context_bytes`.  Throws UF_ERR_OUT_OF_MEMORY.
    TrialPass(const Plan &plan, const PassShape &shape, double context_bytes);
    std::vector<std::byte> pixels, results;
    std::vector<ImageView> images;
    std::vector<PixelTransform> transforms;
    std::vector<OutputView> outputs;
};

TrialPass::TrialPass(const Plan &plan, const PassShape &shape, double context_bytes) {
    const auto count = static_cast<size_t>(shape.count);
    const int64_t pixel_bytes = plan.channels, row_bytes = shape.width * pixel_bytes;
    const int64_t result_row = shape.width * (plan.has_mask() ? 1 : int64_t{4} * plan.output_channels);
    const auto image_bytes = static_cast<size_t>(shape.height * row_bytes);
    const auto result_bytes = static_cast<size_t>(shape.height * result_row);
    require_memory(shape, context_bytes + static_cast<double>(count) * static_cast<double>(image_bytes + result_bytes));
    pixels.resize(count * image_bytes);
    results.resize(count * result_bytes);
    std::mt19937 random(0);
    for (std::byte &pixel : pixels)
        pixel = static_cast<std::byte>(random());
    PixelTransform transform;
    for (float &scale : transform.scale)
        scale = 1.0F / 255.0F;
    transforms.assign(count, transform);
    for (size_t i = 0; i < count; ++i) {
        images.push_back({pixels.data() + i * image_bytes, PixelType::uint8, row_bytes, pixel_bytes, 1});
        outputs.push_back({results.data() + i * result_bytes,
                           plan.has_mask() ? ResultType::mask : ResultType::probability, result_row});
    }
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t middle = values.size() / 2;
    return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

} // namespace

Profile profile_passes(Context &context, double *&op_seconds, const Plan &plan) {
    using Clock = std::chrono::steady_clock;
    constexpr size_t least_passes = 3, most_passes = 200;
    constexpr std::chrono::seconds enough{1};
    const TrialPass trial(plan, context.shape(), context.bytes());
    const auto pass = [&] {
        context.run(trial.images.data(), trial.transforms.data(), context.shape().count, 0.0F, trial.outputs.data(),
                    nullptr);
    };
    pass(); // wakes the threads
    std::vector<double> seconds(plan.ops.size());
    std::vector<std::vector<double>> times(plan.ops.size());
    std::vector<double> passes;
    op_seconds = seconds.data();
    const Clock::time_point start = Clock::now();
    while (passes.size() < least_passes || (passes.size() < most_passes && Clock::now() - start < enough)) {
        const Clock::time_point begin = Clock::now();
        pass();
        passes.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
        for (size_t i = 0; i < seconds.size(); ++i)
            times[i].push_back(seconds[i]);
    }
    op_seconds = nullptr;
    Profile profile;
    for (const std::vector<double> &of_op : times)
        profile.ops.push_back({"", median(of_op)});
    profile.pass_seconds = median(passes);
    return profile;
}

} // namespace uf
