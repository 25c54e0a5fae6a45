#include "cuda/kernel_table.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include "json_value.h"

namespace uf::cuda {

namespace {

// Far above what any kernel needs.
constexpr size_t most_kernels = 65536, most_codes = 64, most_arguments = 64, most_factors = 16, most_rank = 8;
constexpr int64_t largest_integer = int64_t{1} << 40;

class TableReader {
  public:
    TableReader(const Plan &plan, const CodeTensor &code) : plan_(plan), code_(code) {}

    KernelTable read(const Value &kernels) {
        std::set<std::tuple<size_t, int, int, int, std::string, std::string>> seen;
        for (const Value &value : kernels.items(0, most_kernels)) {
            Kernel kernel = read_kernel(value);
            const int pixel = kernel.pixel ? static_cast<int>(*kernel.pixel) : -1;
            const int result = kernel.result ? static_cast<int>(*kernel.result) : -1;
            if (!seen.emplace(kernel.op, kernel.step, pixel, result, kernel.precision, kernel.candidate).second)
                bad(value.where(), ": candidate ", in_quotes(kernel.candidate), " stands twice in the list");
            table_.kernels.push_back(std::move(kernel));
        }
        return std::move(table_);
    }

  private:
    Kernel read_kernel(const Value &value) {
        Kernel kernel;
        kernel.op = static_cast<size_t>(value["op"].integer(0, static_cast<int64_t>(plan_.ops.size()) - 1));
        op_ = &plan_.ops[kernel.op];
        kernel.step = value["step"].small(0, 15);
        read_select(value["select"], kernel);
        kernel.precision = value["precision"].choice<const char *>(
            {{"fp16", "fp16"}, {"bf16", "bf16"}, {"float32", "float32"}, {"tf32", "tf32"}});
        kernel.candidate = value["candidate"].name();
        const std::vector<Value> grid = value["grid"].items(3, 3);
        for (size_t i = 0; i < 3; ++i)
            kernel.grid[i] = read_axis(grid[i]);
        for (const Value &argument : value["arguments"].items(0, most_arguments))
            kernel.arguments.push_back(read_argument(argument));
        kernel.hidden = value["hidden"].small(0, 8);
        for (const Value &code : value["code"].items(1, most_codes))
            kernel.codes.push_back(read_code(code));
        return kernel;
    }

    void read_select(const Value &value, Kernel &kernel) const {
        if (value.has("pixel") != reads_image(*op_) || value.has("result") != writes_result(*op_))
            bad(value.where(),
                " must name a pixel type where the op reads the image, and a result where it writes one");
        if (value.has("pixel"))
            kernel.pixel = value["pixel"].choice<PixelType>(
                {{"uint8", PixelType::uint8}, {"uint16", PixelType::uint16}, {"float32", PixelType::float32}});
        if (value.has("result"))
            kernel.result = value["result"].choice<ResultType>(
                {{"mask", ResultType::mask}, {"probability", ResultType::probability}});
    }

    Term read_term(const Value &value) const {
        Term term;
        if (value.is_integer()) {
            term.integer = value.integer(1, largest_integer);
            return term;
        }
        const std::string &symbol = value.text(longest_name);
        if (symbol == "N") {
            term.kind = Term::Kind::count;
            return term;
        }
        term.axis = symbol.substr(0, 1) == "W" ? 1 : 0;
        if (symbol == "H" || symbol == "W") {
            term.kind = Term::Kind::written;
            return term;
        }
        term.kind = Term::Kind::input;
        for (term.input = 0; term.input < op_->inputs.size(); ++term.input)
            if (symbol == message(term.axis == 0 ? 'H' : 'W', term.input))
                return term;
        bad(value.where(), " is ", in_quotes(symbol), ", not N, H, W, or H0, W0 and so on for ", op_->inputs.size(),
            " inputs");
    }

    Axis read_axis(const Value &value) const {
        Axis axis;
        for (const Value &item : value.items(0, most_factors)) {
            Factor factor;
            if (item.is_integer() || item.is_text()) {
                factor.terms.push_back(read_term(item));
            } else {
                for (const Value &term : item["ceil"].items(1, most_factors))
                    factor.terms.push_back(read_term(term));
                factor.divisor = item["by"].integer(1, largest_integer);
            }
            axis.push_back(std::move(factor));
        }
        return axis;
    }

    KernelArgument read_argument(const Value &value) {
        using Kind = KernelArgument::Kind;
        KernelArgument argument;
        argument.kind = value["kind"].choice<Kind>({{"buffer", Kind::buffer},
                                                    {"weight", Kind::weight},
                                                    {"scratch", Kind::scratch},
                                                    {"image", Kind::image},
                                                    {"image_stride", Kind::image_stride},
                                                    {"transform", Kind::transform},
                                                    {"result", Kind::result},
                                                    {"result_stride", Kind::result_stride},
                                                    {"logit_threshold", Kind::logit_threshold},
                                                    {"int32", Kind::int32},
                                                    {"int64", Kind::int64},
                                                    {"float32", Kind::float32}});
        switch (argument.kind) {
        case Kind::buffer:
            argument.index = read_buffer(value["buffer"]);
            break;
        case Kind::weight:
            argument.index = read_weight(value);
            break;
        case Kind::scratch:
            argument.bytes = read_axis(value["bytes"]);
            argument.zeroed = value["zeroed"].boolean();
            break;
        case Kind::image_stride:
            argument.index = value["axis"].choice<size_t>({{"image", 0U}, {"row", 1U}, {"pixel", 2U}, {"channel", 3U}});
            break;
        case Kind::result_stride:
            argument.index = value["axis"].choice<size_t>({{"image", 0U}, {"row", 1U}});
            break;
        case Kind::int32:
        case Kind::int64:
            argument.value = read_value(value["value"], argument.kind == Kind::int32);
            break;
        case Kind::float32:
            argument.number = value["value"].number(-1e38, 1e38);
            break;
        case Kind::image:
        case Kind::transform:
        case Kind::result:
        case Kind::logit_threshold:
            break;
        }
        const bool of_image =
            argument.kind == Kind::image || argument.kind == Kind::image_stride || argument.kind == Kind::transform;
        const bool of_result = argument.kind == Kind::result || argument.kind == Kind::result_stride ||
                               argument.kind == Kind::logit_threshold;
        if ((of_image && !reads_image(*op_)) || (of_result && !writes_result(*op_)))
            bad(value.where(), " is of ", of_image ? "the image, which" : "the result, which", " op ",
                in_quotes(op_->name), " does not ", of_image ? "read" : "write");
        return argument;
    }

    // As an argument, unlike in a grid, an integer may have any value.
    Term read_value(const Value &value, bool is_int32) const {
        if (!value.is_integer())
            return read_term(value);
        Term term;
        term.integer = is_int32
                           ? value.integer(std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max())
                           : value.integer(std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
        return term;
    }

    size_t read_buffer(const Value &value) const {
        const int buffer = value.small(1, static_cast<int>(plan_.buffers.size()) - 1);
        const auto among = [&](const std::vector<int> &list) {
            return std::find(list.begin(), list.end(), buffer) != list.end();
        };
        if (!among(op_->inputs) && !among(op_->outputs))
            bad(value.where(), " is ", buffer, ", which op ", in_quotes(op_->name), " neither reads nor writes");
        return static_cast<size_t>(buffer);
    }

    size_t read_weight(const Value &value) {
        const std::string &name = value["tensor"].text(2 * longest_name);
        PackedWeight weight;
        for (const auto &[short_name, tensor] : op_->tensors)
            if (name == op_->name + "." + short_name)
                weight.tensor = &tensor;
        if (weight.tensor == nullptr)
            bad(value.where(), " is of tensor ", in_quotes(name), ", which op ", in_quotes(op_->name),
                " does not have");
        weight.type = value["dtype"].choice<ElementType>(
            {{"float32", ElementType::float32}, {"fp16", ElementType::fp16}, {"bf16", ElementType::bf16}});
        weight.shape = read_shape(value["shape"]);
        weight.padded = read_shape(value["pad_to"]);
        const auto elements = static_cast<int64_t>(weight.tensor->values.size());
        if (weight.padded.size() != weight.shape.size() || product(weight.shape) != elements)
            bad(value.where(), " views ", in_quotes(name), " of ", elements, " elements as ", list(weight.shape),
                " and pads it to ", list(weight.padded));
        for (size_t i = 0; i < weight.shape.size(); ++i)
            if (weight.padded[i] < weight.shape[i])
                bad(value.where(), " pads axis ", i, " of ", weight.shape[i], " down to ", weight.padded[i]);
        // A limit on what a small file may allocate: kernels pad by less than one tile on each axis.
        if (product(weight.padded) > 64 * elements + (1 << 16))
            bad(value.where(), " pads ", elements, " elements to ", list(weight.padded));
        return index_of(weight);
    }

    static std::vector<int64_t> read_shape(const Value &value) {
        std::vector<int64_t> shape;
        for (const Value &extent : value.items(1, most_rank))
            shape.push_back(extent.integer(1, std::numeric_limits<int32_t>::max()));
        return shape;
    }

    static int64_t product(const std::vector<int64_t> &shape) {
        int64_t result = 1;
        for (const int64_t extent : shape)
            if (__builtin_mul_overflow(result, extent, &result))
                return std::numeric_limits<int64_t>::max();
        return result;
    }

    size_t index_of(const PackedWeight &weight) {
        const auto [found, is_new] = weight_indices_.try_emplace(
            {weight.tensor, weight.type, weight.shape, weight.padded}, table_.weights.size());
        if (is_new)
            table_.weights.push_back(weight);
        return found->second;
    }

    KernelCode read_code(const Value &value) {
        KernelCode code;
        const std::string &target = value["target"].text(longest_name);
        code.ptx = target.substr(0, 8) == "compute_";
        const std::string digits = target.substr(code.ptx ? 8 : std::min<size_t>(target.size(), 3));
        const bool known = (code.ptx || target.substr(0, 3) == "sm_") && (digits.size() == 2 || digits.size() == 3) &&
                           std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
        if (!known)
            bad(value["target"].where(), " is ", in_quotes(target), ", expected sm_90, compute_90 or the like");
        code.capability = std::stoi(digits);
        code.rank = value["rank"].small(0, 1 << 20);
        code.module = read_module(value["tensor"].text(2 * longest_name));
        code.entry = value["entry"].name();
        code.warps = value["warps"].small(1, 32);
        code.shared_bytes = value["shared"].small(0, 1 << 20);
        code.programmatic = value["pdl"].boolean();
        code.driver = value["driver"].small(0, 1 << 20);
        return code;
    }

    size_t read_module(const std::string &tensor) {
        const auto [found, is_new] = module_indices_.try_emplace(tensor, table_.modules.size());
        if (is_new)
            table_.modules.push_back(code_(tensor));
        return found->second;
    }

    const Plan &plan_;
    const CodeTensor &code_;
    const Op *op_ = nullptr; // of the kernel that is being read
    KernelTable table_;
    std::map<std::string, size_t> module_indices_;
    std::map<std::tuple<const Tensor *, ElementType, std::vector<int64_t>, std::vector<int64_t>>, size_t>
        weight_indices_;
};

} // namespace

int64_t Term::at(const LaunchSizes &sizes) const {
    switch (kind) {
    case Kind::count:
        return sizes.count;
    case Kind::written:
        return sizes.written[axis];
    case Kind::input:
        return sizes.inputs[input][axis];
    case Kind::integer:
        break;
    }
    return integer;
}

int64_t checked_product(std::initializer_list<int64_t> factors) {
    constexpr int64_t largest = int64_t{1} << 60;
    int64_t product = 1;
    for (const int64_t factor : factors)
        if (__builtin_mul_overflow(product, factor, &product) || product > largest)
            throw Error(UF_ERR_INVALID_ARGUMENT,
                        "image or batch is too large for one pass on a GPU; use smaller tiles or fewer images");
    return product;
}

int64_t axis_value(const Axis &axis, const LaunchSizes &sizes) {
    int64_t value = 1;
    for (const Factor &factor : axis) {
        int64_t part = 1;
        for (const Term &term : factor.terms)
            part = checked_product({part, term.at(sizes)});
        value = checked_product({value, (part - 1) / factor.divisor + 1});
    }
    return value;
}

int64_t element_bytes(ElementType type) { return type == ElementType::float32 ? 4 : 2; }

ElementType storage_of(const std::string &precision) {
    if (precision == "fp16")
        return ElementType::fp16;
    return precision == "bf16" ? ElementType::bf16 : ElementType::float32;
}

bool reads_image(const Op &op) { return op.kind == OpKind::stem || op.kind == OpKind::normalise; }

bool writes_result(const Op &op) { return op.kind == OpKind::head || op.kind == OpKind::output; }

std::shared_ptr<const KernelTable> read_kernel_table(const Value &kernels, const Plan &plan, const CodeTensor &code) {
    return std::make_shared<const KernelTable>(TableReader(plan, code).read(kernels));
}

} // namespace uf::cuda
