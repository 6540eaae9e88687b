// The same model on the CPU and on a GPU.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "common/codec/block_codec.h"
#include "common/layout/layout.h"
#include "ps-worker/cuda/runtime.h"
#include "ps-worker/engine/device_parameters.h"
#include "ps-worker/engine/host_parameters.h"
#include "ps-worker/engine/model.h"
#include "ps-worker/engine/replicated_model.h"
#include "ps-worker/engine/tensor_workload.h"
#ifdef PS_NCCL
#include "ps-worker/engine/nccl_collective.h"
#endif

namespace ps::worker {
namespace {

JobSpec Mlp() {
  JobSpec spec;
  spec.model.type = "mlp";
  spec.model.layers = {192, 256, 64, 10};
  spec.sparsification.ratio = 0.05;
  return spec;
}

JobSpec Cnn() {
  JobSpec spec;
  spec.model.type = "cnn";
  spec.model.channels = {8, 16};
  spec.model.hidden = 32;
  spec.model.input_shape = {3, 8, 8};
  spec.model.classes = 10;
  spec.model.batch_norm = true;
  spec.sparsification.ratio = 0.05;
  return spec;
}

struct Records {
  std::vector<float> features;
  std::vector<float> labels;

  explicit Records(std::uint32_t count, unsigned seed = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto label = random() % 10;
      for (std::uint32_t f = 0; f < 192; ++f) {
        features.push_back(normal(random) + (f % 10 == label ? 1.0f : 0.0f));
      }
      labels.push_back(static_cast<float>(label));
    }
  }
  Batch batch() const {
    return {features, labels, static_cast<std::uint32_t>(labels.size()), {}, nullptr};
  }
};

double Norm(const std::vector<float>& values) {
  double squares = 0;
  for (const float value : values) squares += double{value} * value;
  return std::sqrt(squares);
}

double RelativeDifference(const std::vector<float>& one, const std::vector<float>& other) {
  std::vector<float> difference(one.size());
  std::transform(one.begin(), one.end(), other.begin(), difference.begin(), std::minus<>());
  return Norm(difference) / Norm(one);
}

class CudaEngineTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (cuda::DeviceCount() == 0) GTEST_SKIP() << "skipped: no CUDA device";
    if (EngineDevices() == 0) GTEST_SKIP() << "skipped: " << EngineVersion() << " has no CUDA";
    SetComputeThreads(4);
    const auto properties = cuda::PropertiesOf(0);
    ASSERT_TRUE(properties.ok()) << properties.error().message;
    device_.compute = {true, properties->major, properties->minor};
    device_.cuda = 0;
  }
  static JobSpec Spec() { return std::string(GetParam()) == "mlp" ? Mlp() : Cnn(); }
  static std::unique_ptr<Model> Make(const JobSpec& spec, const ModelDevice& device) {
    auto model = Model::Create(spec, 0, device);
    EXPECT_TRUE(model.ok()) << (model.ok() ? "" : model.error().message);
    return std::move(model).value();
  }
  static std::vector<float> Gradients(const Model& model) {
    std::vector<float> values(model.gradients().size());
    EXPECT_EQ(cudaMemcpy(values.data(), model.gradients().data(), values.size() * sizeof(float),
                         cudaMemcpyDefault),
              cudaSuccess);
    return values;
  }
  static std::vector<float> Parameters(Model& model) {
    std::vector<float> values(model.parameters().size());
    model.ReadParameters(values);
    return values;
  }
  static std::vector<float> Buffers(const Model& model) {
    std::vector<float> buffers(model.buffer_elements());
    std::vector<float> counters(model.counter_elements());
    model.ReadBuffers(buffers, counters);
    buffers.insert(buffers.end(), counters.begin(), counters.end());
    return buffers;
  }

  ModelDevice device_;
};

TEST_P(CudaEngineTest, BeginsWithTheSameValues) {
  EXPECT_EQ(Parameters(*Make(Spec(), {})), Parameters(*Make(Spec(), device_)));
}

TEST_P(CudaEngineTest, GradientsAgree) {
  const auto cpu = Make(Spec(), {});
  const auto gpu = Make(Spec(), device_);
  const Records records(256);
  const double loss = cpu->Step(records.batch()).value();
  EXPECT_NEAR(gpu->Step(records.batch()).value(), loss, 1e-4 * loss);
  const auto expected = Gradients(*cpu);
  EXPECT_LT(RelativeDifference(expected, Gradients(*gpu)), 1e-4);
  EXPECT_NEAR(gpu->GradientSquares(), cpu->GradientSquares(), 2e-4 * cpu->GradientSquares());
  if (!Buffers(*cpu).empty()) {
    EXPECT_LT(RelativeDifference(Buffers(*cpu), Buffers(*gpu)), 1e-4);
  }
  if (device_.compute.major < 8) return;
  StepMode mode;
  mode.precision = Precision::kBf16;
  ASSERT_TRUE(gpu->Step(records.batch(), mode).ok());
  EXPECT_LT(RelativeDifference(expected, Gradients(*gpu)), 3e-2);
}

TEST_P(CudaEngineTest, EvaluatesAlike) {
  const auto cpu = Make(Spec(), {});
  const auto gpu = Make(Spec(), device_);
  const Records records(500, 3);
  const auto expected = cpu->Evaluate(records.batch());
  const auto got = gpu->Evaluate(records.batch());
  ASSERT_TRUE(expected.ok() && got.ok());
  EXPECT_NEAR(got->mean_loss(), expected->mean_loss(), 1e-4 * expected->mean_loss());
  EXPECT_NEAR(got->mean_metric(), expected->mean_metric(), 0.005);
}

// A server's part is played here: what is pushed is taken from the weights, which are pulled again.
TEST_P(CudaEngineTest, TrainsAlike) {
  const auto train = [&](const ModelDevice& device, MakeDenseParameters make) {
    const JobSpec spec = Spec();
    TensorWorkload workload(spec, Make(spec, device), Precision::kFp32, std::move(make));
    const auto view = LayoutView::Create(workload.layout(), 1).value();
    std::vector<float> weights(workload.table(0).begin(), workload.table(0).end());
    EXPECT_TRUE(workload.Prepare(view, WorkerId(0)).ok());
    std::vector<double> losses;
    std::vector<std::byte> bytes;
    std::vector<codec::BlockView> views;
    std::vector<std::uint16_t> indices;
    std::vector<float> values;
    const auto elements_of = [&](std::uint32_t block) { return view.block(block).elements; };
    for (unsigned step = 0; step < 40; ++step) {
      const Records records(128, step);
      const auto computed = workload.Compute(records.batch(), 1);
      EXPECT_TRUE(computed.ok() && computed->kept());
      losses.push_back(computed->loss);
      bytes.resize(workload.max_push_bytes());
      bytes.resize(workload.WriteShard(ShardId(0), bytes));
      EXPECT_TRUE(codec::ParseSegment(bytes, elements_of, views).ok());
      for (const auto& push : views) {
        codec::DecodeIndices(push, indices);
        codec::DecodeValues(push, values);
        const auto begin = view.block(push.header.block()).table_offset;
        for (std::size_t i = 0; i < values.size(); ++i) {
          weights[begin + indices[i]] -= 0.1f * values[i];
        }
      }
      std::vector<std::byte> pulled;
      for (std::uint32_t number = 0; number < view.block_count(); ++number) {
        const Block& block = view.block(number);
        if (block.table != 0) continue;
        pulled.resize(codec::MaxEncodedBytes(block.elements, block.elements,
                                             wire::IndexCodec::Dense, wire::ValueCodec::Fp32));
        pulled.resize(
            codec::EncodeBlock(number, block.elements, {},
                               std::span(weights).subspan(block.table_offset, block.elements),
                               wire::IndexCodec::Dense, wire::ValueCodec::Fp32, pulled.data(), {}));
        EXPECT_TRUE(codec::ParseSegment(pulled, elements_of, views).ok());
        EXPECT_TRUE(workload.Apply(block, views.at(0), false).ok());
      }
      EXPECT_TRUE(workload.EndPull().ok());
    }
    return losses;
  };
  const auto expected = train({}, {});
  const auto got = train(device_, DeviceParameters::Create);
  EXPECT_LT(expected.back(), 0.7 * expected.front());
  // Rounding may select another entry here and there, which then goes a step later.
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(got[i], expected[i], 0.05) << i;
}

#ifdef PS_NCCL
// With one device a communicator of one.
TEST_P(CudaEngineTest, NcclJoinsAllDevices) {
  for (int ranks = 1; ranks <= cuda::DeviceCount(); ++ranks) {
    constexpr std::size_t kElements = 1'000'003;
    std::vector<float*> memory(static_cast<std::size_t>(ranks));
    std::vector<std::span<float>> values;
    std::vector<std::span<const float>> read_only;
    for (int rank = 0; rank < ranks; ++rank) {
      float*& mine = memory[static_cast<std::size_t>(rank)];
      ASSERT_EQ(cudaSetDevice(rank), cudaSuccess);
      ASSERT_EQ(cudaMalloc(&mine, kElements * sizeof(float)), cudaSuccess);
      const std::vector<float> ours(kElements, static_cast<float>(rank + 1));
      ASSERT_EQ(cudaMemcpy(mine, ours.data(), kElements * sizeof(float), cudaMemcpyHostToDevice),
                cudaSuccess);
      values.emplace_back(mine, kElements);
      read_only.emplace_back(mine, kElements);
    }
    ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
    const auto joined = NcclCollective::Create(static_cast<std::size_t>(ranks));
    ASSERT_TRUE(joined.ok()) << joined.error().message;
    const auto first_and_last = [&](int rank) {
      std::pair<float, float> ends;
      const float* const at = memory[static_cast<std::size_t>(rank)];
      EXPECT_EQ(cudaMemcpy(&ends.first, at, sizeof(float), cudaMemcpyDefault), cudaSuccess);
      EXPECT_EQ(cudaMemcpy(&ends.second, at + kElements - 1, sizeof(float), cudaMemcpyDefault),
                cudaSuccess);
      return ends;
    };
    ASSERT_TRUE((*joined)->Sum(read_only, values[0]).ok());
    const float sum = static_cast<float>(ranks * (ranks + 1) / 2);
    EXPECT_EQ(first_and_last(0), std::pair(sum, sum));
    ASSERT_TRUE((*joined)->Broadcast(values).ok());
    for (int rank = 0; rank < ranks; ++rank) {
      EXPECT_EQ(first_and_last(rank), std::pair(sum, sum)) << rank;
      EXPECT_EQ(cudaFree(memory[static_cast<std::size_t>(rank)]), cudaSuccess);
    }
  }
}

TEST_P(CudaEngineTest, SeveralDevicesComputeWhatOneDoes) {
  if (cuda::DeviceCount() < 2) GTEST_SKIP() << "skipped: there is one CUDA device";
  JobSpec spec = Spec();
  spec.model.batch_norm = false;  // whose statistics are of a part
  const auto one = Make(spec, device_);
  std::vector<std::unique_ptr<Model>> replicas;
  for (int number = 0; number < cuda::DeviceCount(); ++number) {
    ModelDevice device = device_;
    device.cuda = number;
    replicas.push_back(Make(spec, device));
  }
  auto joined = NcclCollective::Create(replicas.size());
  ASSERT_TRUE(joined.ok()) << joined.error().message;
  ReplicatedModel several(std::move(replicas), std::move(*joined));
  for (unsigned step = 0; step < 3; ++step) {
    const Records records(250, step);
    const double loss = one->Step(records.batch()).value();
    EXPECT_NEAR(several.Step(records.batch()).value(), loss, 1e-4 * loss);
    EXPECT_LT(RelativeDifference(Gradients(*one), Gradients(several)), 1e-4);
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(Models, CudaEngineTest, ::testing::Values("mlp", "cnn"),
                         [](const auto& one) { return std::string(one.param); });

}  // namespace
}  // namespace ps::worker
