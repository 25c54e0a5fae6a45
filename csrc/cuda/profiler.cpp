#include "cuda/profiler.h"

#include <algorithm>
#include <iterator>

#include "cuda/workbench.h"
#include "error.h"

namespace uf::cuda {

namespace {

constexpr int repeats = 9;

// Bytes read and written per second by copies beyond every cache; 0 where there is no memory for them.
double copy_rate(const std::shared_ptr<const Device> &device, Workbench &bench) {
    constexpr size_t bytes = size_t{128} << 20;
    DeviceMemory memory;
    try {
        memory = allocate_device(device, 2 * bytes);
    } catch (const Error &error) {
        if (error.status() == UF_ERR_OUT_OF_MEMORY)
            return 0;
        throw;
    }
    std::vector<double> seconds;
    for (int repeat = 0; repeat < repeats; ++repeat)
        seconds.push_back(bench.timed(
            [&](CUstream stream) { device->api().copy_on_device(memory.get(), memory.get() + bytes, bytes, stream); }));
    return 2.0 * static_cast<double>(bytes) / *std::min_element(seconds.begin(), seconds.end());
}

// Operations (2 per multiply-add, float32 sums) that a multiprocessor does per clock, as NVIDIA's data sheets imply.
// GeForce cards have half the rate in fp16 and bf16.
struct Rate {
    int capability;
    double half, tf32, float32;
};
constexpr Rate rates[] = {{80, 2048, 1024, 128},  {86, 1024, 512, 256},  {87, 2048, 1024, 256},
                          {89, 1024, 512, 256},   {90, 4096, 2048, 256}, {100, 8192, 4096, 256},
                          {103, 8192, 4096, 256}, {120, 1024, 512, 256}, {121, 1024, 512, 256}};

double data_sheet_rate(const Device &device, const std::string &precision) {
    const auto *const known = std::find_if(std::begin(rates), std::end(rates),
                                           [&](const Rate &rate) { return rate.capability == device.capability(); });
    if (known == std::end(rates))
        return 0;
    const double per_clock = precision == "float32" ? known->float32 : precision == "tf32" ? known->tf32 : known->half;
    return per_clock * device.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) * 1e3 *
           device.attribute(CU_DEVICE_ATTRIBUTE_CLOCK_RATE);
}

} // namespace

Profile profile(const Program &program, const PassShape &shape) {
    Profile profile;
    program.device()->guarded([&] {
        const Plan &plan = program.plan();
        Workbench bench(program, shape);
        const ResultType result = plan.has_mask() ? ResultType::mask : ResultType::probability;
        bench.run(whole_pass(program)); // so that every op meets numbers of the usual size

        std::vector<Workbench::Clock> clocks;
        for (const Op &op : plan.ops) {
            std::vector<PlannedLaunch> launches;
            for (const Step &step : program.selection().steps)
                if (step.op == &op)
                    launches.push_back({&step, nullptr});
            const Candidate &runs = Program::chosen(launches[0].step->of(PixelType::uint8, result));
            profile.ops.push_back({runs.kernel->candidate.c_str(), 0});
            clocks.emplace_back(bench, std::move(launches));
        }
        clocks.emplace_back(bench, whole_pass(program));
        // By turns, so that a change of the GPU's clock meets all of them.
        std::vector<std::vector<double>> times(clocks.size());
        for (int repeat = 0; repeat < repeats; ++repeat)
            for (size_t i = 0; i < clocks.size(); ++i)
                times[i].push_back(clocks[i].seconds());
        for (size_t i = 0; i < profile.ops.size(); ++i)
            profile.ops[i].seconds = median(times[i]);
        profile.pass_seconds = median(times.back());
        profile.bytes_per_second = copy_rate(program.device(), bench);
        profile.operations_per_second = data_sheet_rate(*program.device(), program.selection().precision);
    });
    return profile;
}

} // namespace uf::cuda
