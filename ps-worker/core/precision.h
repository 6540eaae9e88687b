// In which numbers a task computes. The values on the servers, and what is added
// to them, are fp32 whatever it is.
//
// Pure: what the device is, the engine knows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/result.h"

namespace ps::worker {

enum class Precision : std::uint8_t { kFp32, kBf16, kFp16 };

// "fp32", "bf16", "fp16".
const char* PrecisionName(Precision precision);

// Where a task computes.
struct ComputeDevice {
  bool gpu = false;  // else a CPU
  // NVIDIA's compute capability of a GPU: 8 and 6 for sm_86.
  int major = 0;
  int minor = 0;
};

// The precision for training.precision, which is auto, fp32, bf16 or fp16. With auto it is what the
// device is made for: on a CPU fp32; on a GPU fp32 before sm_70, fp16 on sm_70 and sm_75, which
// have tensor cores for it, and bf16 from sm_80 on, which needs no loss scaling. kInvalid, with
// what would do, for what the device does not compute: fp16 on a CPU and before sm_53, bf16 before
// sm_80.
Result<Precision> ChoosePrecision(std::string_view wanted, const ComputeDevice& device);

// Whether the loss is scaled, by training.loss_scaling.mode: auto, dynamic or none.
bool ScalesLoss(std::string_view mode, Precision precision);

}  // namespace ps::worker
