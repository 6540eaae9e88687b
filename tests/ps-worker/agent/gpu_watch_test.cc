// NVIDIA's library is played by tests/support/fake_nvml, as if on recorded machines.
#include "ps-worker/agent/gpu_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ps-worker/agent/nvml.h"
#include "tests/support/gpu_machine.h"
#include "tests/support/temp_directory.h"

namespace ps::worker {
namespace {

using ::testing::HasSubstr;

constexpr net::Milliseconds kPatience{20'000};

std::string PathOf(const std::string& machine) {
  return std::string(PS_GPU_MACHINES) + "/" + machine + ".txt";
}

std::vector<control::GpuInfoT> GpusOf(const std::string& machine) {
  const auto recorded = test::GpuMachine::Read(PathOf(machine));
  std::vector<control::GpuInfoT> gpus(recorded.count());
  for (std::size_t i = 0; i < gpus.size(); ++i) {
    gpus[i].uuid = "GPU-" + std::to_string(i);
    gpus[i].major = static_cast<std::uint8_t>(recorded.major);
    gpus[i].minor = static_cast<std::uint8_t>(recorded.minor);
  }
  return gpus;
}

class GpuWatchTest : public ::testing::Test {
 protected:
  void Begin(const std::string& machine) {
    ::setenv("DS_FAKE_NVML", PathOf(machine).c_str(), 1);
    ::setenv("DS_FAKE_NVML_STATE", state_.c_str(), 1);
    GpuWatch::Options options;
    options.library = PS_FAKE_NVML;
    options.interval = net::Milliseconds(100);
    Begin(machine, options);
  }
  void Begin(const std::string& machine, const GpuWatch::Options& options) {
    watch_ = std::make_unique<GpuWatch>(loop_, GpusOf(machine), options,
                                        [this](GpuWatch::Report report) {
                                          report_ = std::move(report);
                                          ++reports_;
                                        });
  }
  void TearDown() override {
    watch_.reset();
    ::unsetenv("DS_FAKE_NVML");
    ::unsetenv("DS_FAKE_NVML_STATE");
  }
  void Happens(const std::string& line) {
    std::ofstream file(state_, std::ios::app);
    file << line << "\n";
  }
  // Looks until it is so.
  template <typename Condition>
  bool Until(Condition condition) {
    return loop_.RunUntil([&] { return reports_ > 0 && condition(); }, kPatience);
  }
  bool Looks(int more) {
    const int wanted = reports_ + more;
    return Until([&] { return reports_ >= wanted; });
  }

  test::TempDirectory directory_{"gpus"};
  const std::string state_ = (directory_ / "state").string();
  net::Loop loop_;
  GpuWatch::Report report_;
  int reports_ = 0;
  std::unique_ptr<GpuWatch> watch_;
};

// What each link of a recorded machine should be worth.
void ExpectBandwidth(const std::string& name, const std::vector<std::uint16_t>& bandwidth) {
  const auto machine = test::GpuMachine::Read(PathOf(name));
  const std::map<std::string, std::uint16_t> slow = {{"PIX", 12}, {"PXB", 11}, {"PHB", 10},
                                                     {"NODE", 9}, {"SYS", 6},  {"X", 0}};
  ASSERT_EQ(bandwidth.size(), machine.count() * machine.count());
  for (std::size_t a = 0; a < machine.count(); ++a) {
    for (std::size_t b = 0; b < machine.count(); ++b) {
      const int links = machine.NvLinks(a, b);
      EXPECT_EQ(bandwidth[a * machine.count() + b],
                links > 0 ? 20 * links : slow.at(machine.links[a][b]))
          << name << " " << a << " " << b;
    }
  }
}

TEST_F(GpuWatchTest, ADgx1) {
  Begin("dgx-1v");
  ASSERT_TRUE(Looks(1));
  ExpectBandwidth("dgx-1v", report_.bandwidth);
  EXPECT_EQ(report_.gpus[3].pci, "0000:13:00.0");
  EXPECT_TRUE(report_.gpus[3].measured);
}

TEST_F(GpuWatchTest, ADgxA100) {
  Begin("dgx-a100");
  ASSERT_TRUE(Looks(1));
  ExpectBandwidth("dgx-a100", report_.bandwidth);
}

TEST_F(GpuWatchTest, AnHgxH100) {
  Begin("hgx-h100");
  ASSERT_TRUE(Looks(1));
  ExpectBandwidth("hgx-h100", report_.bandwidth);
}

TEST_F(GpuWatchTest, GpusWithoutNvLink) {
  Begin("pcie");
  ASSERT_TRUE(Looks(1));
  ExpectBandwidth("pcie", report_.bandwidth);
}

TEST_F(GpuWatchTest, TellsHowTheyAre) {
  Happens("load 2 87 123456789 71 5 64");
  Begin("pcie");
  ASSERT_TRUE(Looks(1));
  const control::GpuInfoT& gpu = report_.gpus[2];
  EXPECT_EQ(gpu.utilization, 87);
  EXPECT_EQ(gpu.memory_used, 123456789u);
  EXPECT_EQ(gpu.temperature, 71);
  EXPECT_EQ(gpu.ecc_errors, 5u);
  EXPECT_TRUE(gpu.throttled);
  EXPECT_FALSE(report_.gpus[1].throttled);
  Happens("load 2 3 0 40 5 1");
  EXPECT_TRUE(Until([&] { return report_.gpus[2].utilization == 3; }));
  EXPECT_FALSE(report_.gpus[2].throttled);  // idle, which is no trouble
}

TEST_F(GpuWatchTest, AnErrorOfTheGpuIsTroubleAndOneOfAProgramIsNot) {
  Begin("pcie");
  ASSERT_TRUE(Looks(1));
  Happens("xid 1 31");
  Happens("xid 4 79");
  ASSERT_TRUE(Until([&] { return !report_.gpus[4].trouble.empty(); }));
  EXPECT_EQ(report_.gpus[4].trouble, "XID 79");
  EXPECT_EQ(report_.gpus[1].trouble, "");
  // The first is what it is about, and it stays.
  Happens("xid 4 45");
  Happens("xid 4 48");
  ASSERT_TRUE(Looks(4));
  EXPECT_EQ(report_.gpus[4].trouble, "XID 79");
}

TEST_F(GpuWatchTest, OneThatNoLongerAnswersIsInTrouble) {
  Begin("pcie");
  ASSERT_TRUE(Looks(1));
  Happens("lost 0");
  ASSERT_TRUE(Until([&] { return !report_.gpus[0].trouble.empty(); }));
  EXPECT_THAT(report_.gpus[0].trouble, HasSubstr("GPU is lost"));
  EXPECT_FALSE(report_.gpus[0].measured);
  EXPECT_TRUE(report_.gpus[1].trouble.empty());
}

TEST_F(GpuWatchTest, WithoutTheLibraryNothingIsKnownOfThem) {
  GpuWatch::Options options;
  options.library = (directory_ / "libnvidia-ml.so.1").string();
  Begin("pcie", options);
  ASSERT_TRUE(Looks(1));
  EXPECT_TRUE(report_.bandwidth.empty());
  EXPECT_EQ(report_.gpus.size(), 8u);
  EXPECT_FALSE(report_.gpus[0].measured);
  EXPECT_TRUE(report_.gpus[0].trouble.empty());
}

TEST_F(GpuWatchTest, ALibraryThatIsAnotherIsSaidToBe) {
  const auto nvml = Nvml::Open("libz.so.1");
  ASSERT_FALSE(nvml.ok());
  EXPECT_THAT(nvml.error().message, HasSubstr("is not NVML"));
}

}  // namespace
}  // namespace ps::worker
