#include "cuda/pass_graph.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "error.h"
#include "message.h"

namespace uf::cuda {

namespace {

// Runs `call`; an error then also says which kernel it was about.
template <class Call> void about(const Candidate &candidate, const Op &op, const Call &call) {
    try {
        call();
    } catch (const Error &error) {
        throw Error(error.status(),
                    message("kernel ", in_quotes(candidate.code->entry), " of op ", in_quotes(op.name), ", candidate ",
                            in_quotes(candidate.kernel->candidate), ": ", error.what()));
    }
}

unsigned grid_extent(const Axis &axis, const LaunchSizes &sizes, int64_t most) {
    const int64_t extent = axis_value(axis, sizes);
    if (extent > most)
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message("image or batch is too large for one pass on a GPU: a grid of ", extent, " blocks, ", most,
                            " are possible; use smaller tiles or fewer images"));
    return static_cast<unsigned>(extent);
}

// The bits of a parameter; the driver reads as many as it has.
template <class Number> uint64_t bits(Number number) {
    uint64_t result = 0;
    std::memcpy(&result, &number, sizeof number);
    return result;
}

} // namespace

LaunchSizes launch_sizes(const Plan &plan, const Op &op, const PassShape &shape) {
    const auto size = [&](int buffer) -> std::array<int64_t, 2> {
        const Buffer &b = plan.buffers[static_cast<size_t>(buffer)];
        return {b.height.at(shape.height), b.width.at(shape.width)};
    };
    LaunchSizes sizes;
    sizes.count = shape.count;
    sizes.written = op.outputs.empty() ? std::array<int64_t, 2>{shape.height - 2 * int64_t{plan.margin},
                                                                shape.width - 2 * int64_t{plan.margin}}
                                       : size(op.outputs[0]);
    for (const int input : op.inputs)
        sizes.inputs.push_back(size(input));
    return sizes;
}

std::vector<PlannedLaunch> whole_pass(const Program &program) {
    std::vector<PlannedLaunch> launches;
    for (const Step &step : program.selection().steps)
        launches.push_back({&step, nullptr});
    return launches;
}

PassGraph::PassGraph(const Program &program, const PassShape &shape, const PassMemory &memory,
                     const ImageArguments &image, const ResultArguments &result,
                     const std::vector<PlannedLaunch> &launches)
    : program_(program), api_(program.device()->api()), memory_(memory), image_(image), result_(result) {
    for (const PlannedLaunch &planned : launches)
        nodes_.push_back({planned, launch_sizes(program.plan(), *planned.step->op, shape), nullptr});
    CUgraph graph = nullptr;
    api_.graph_create(&graph, 0);
    graph_ = {program.device(), graph, &Driver::graph_destroy};
    add_nodes();
    CUgraphExec executable = nullptr;
    api_.graph_instantiate(&executable, graph, 0);
    executable_ = {program.device(), executable, &Driver::graph_exec_destroy};
}

// A programmatic edge lets a kernel start before its predecessor has ended, which it then waits for itself.  That is
// safe only if every kernel of the chain does so, because what they read is often older than the predecessor.
bool PassGraph::all_programmatic() const {
    for (const Node &node : nodes_) {
        if (node.planned.candidate != nullptr) {
            if (!node.planned.candidate->code->programmatic)
                return false;
            continue;
        }
        for (const std::vector<Candidate> &candidates : node.planned.step->candidates)
            if (!candidates.empty() && !Program::chosen(candidates).code->programmatic)
                return false;
    }
    return static_cast<bool>(api_.graph_add_edges_with_data);
}

const Candidate &PassGraph::candidate_of(const Node &node, const ImageArguments &image, const ResultArguments &result) {
    return node.planned.candidate != nullptr ? *node.planned.candidate
                                             : Program::chosen(node.planned.step->of(image.type, result.type));
}

void PassGraph::add_nodes() {
    const bool programmatic = all_programmatic();
    Parameters parameters;
    for (size_t i = 0; i < nodes_.size(); ++i) {
        Node &node = nodes_[i];
        const CUgraphNode *const previous = i > 0 ? &nodes_[i - 1].handle : nullptr;
        fill(node, image_, result_, parameters);
        about(candidate_of(node, image_, result_), *node.planned.step->op, [&] {
            api_.graph_add_kernel(&node.handle, graph_.get(), previous, previous != nullptr && !programmatic ? 1 : 0,
                                  &parameters.launch);
            const CUgraphEdgeData edge = {1, 0, 1, {}};
            if (previous != nullptr && programmatic)
                api_.graph_add_edges_with_data(graph_.get(), previous, &node.handle, &edge, 1);
        });
    }
}

void PassGraph::fill(Node &node, const ImageArguments &image, const ResultArguments &result,
                     Parameters &parameters) const {
    if (node.planned.step->role == Step::Role::writes_result)
        node.sizes.written = result.written;
    const Candidate &candidate = candidate_of(node, image, result);
    const Kernel &kernel = *candidate.kernel;
    size_t count = 0;
    for (const KernelArgument &argument : kernel.arguments)
        parameters.values[count++] = value(argument, node, image, result);
    for (int i = 0; i < kernel.hidden; ++i)
        parameters.values[count++] = 0;
    for (size_t i = 0; i < count; ++i)
        parameters.pointers[i] = &parameters.values[i];
    parameters.launch = {program_.function(candidate),
                         grid_extent(kernel.grid[0], node.sizes, std::numeric_limits<int32_t>::max()),
                         grid_extent(kernel.grid[1], node.sizes, 65535),
                         grid_extent(kernel.grid[2], node.sizes, 65535),
                         32 * static_cast<unsigned>(candidate.code->warps),
                         1,
                         1,
                         static_cast<unsigned>(candidate.code->shared_bytes),
                         parameters.pointers.data(),
                         nullptr};
}

uint64_t PassGraph::value(const KernelArgument &argument, const Node &node, const ImageArguments &image,
                          const ResultArguments &result) const {
    using Kind = KernelArgument::Kind;
    switch (argument.kind) {
    case Kind::buffer:
        return memory_.slots[static_cast<size_t>(program_.plan().buffers[argument.index].slot)];
    case Kind::weight:
        return program_.weight(argument.index);
    case Kind::scratch:
        return argument.zeroed ? memory_.zeroed : memory_.scratch;
    case Kind::image:
        return image.data;
    case Kind::image_stride:
        return bits(image.strides[argument.index]);
    case Kind::transform:
        return memory_.transforms;
    case Kind::result:
        return result.data;
    case Kind::result_stride:
        return bits(result.strides[argument.index]);
    case Kind::logit_threshold:
        return bits(result.logit_threshold);
    case Kind::int32:
        return bits(static_cast<int32_t>(argument.value.at(node.sizes)));
    case Kind::int64:
        return bits(argument.value.at(node.sizes));
    case Kind::float32:
        return bits(argument.number);
    }
    return 0;
}

void PassGraph::set(const ImageArguments &image, const ResultArguments &result) {
    if (!(image == image_))
        update(Step::Role::reads_image, image, result_);
    image_ = image;
    if (!(result == result_))
        update(Step::Role::writes_result, image, result);
    result_ = result;
}

void PassGraph::update(Step::Role role, const ImageArguments &image, const ResultArguments &result) {
    Parameters parameters;
    for (Node &node : nodes_) {
        if (node.planned.step->role != role)
            continue;
        fill(node, image, result, parameters);
        about(candidate_of(node, image, result), *node.planned.step->op,
              [&] { api_.graph_exec_set_kernel(executable_.get(), node.handle, &parameters.launch); });
    }
}

void PassGraph::upload(CUstream stream) const { api_.graph_upload(executable_.get(), stream); }

void PassGraph::launch(CUstream stream) const { api_.graph_launch(executable_.get(), stream); }

} // namespace uf::cuda
