#include "ps-worker/core/precision.h"

#include "common/check.h"
#include "common/error_id.h"

namespace ps::worker {
namespace {

Error Refused(std::string_view wanted, const std::string& why) {
  return Error{ErrorId::kPrecision, "training.precision: " + std::string(wanted) + " " + why};
}

}  // namespace

const char* PrecisionName(Precision precision) {
  switch (precision) {
    case Precision::kFp32: return "fp32";
    case Precision::kBf16: return "bf16";
    case Precision::kFp16: return "fp16";
  }
  return "";
}

Result<Precision> ChoosePrecision(std::string_view wanted, const ComputeDevice& device) {
  const int capability = 10 * device.major + device.minor;
  const std::string name =
      device.gpu ? "a GPU of sm_" + std::to_string(capability) : std::string("a CPU");
  if (wanted == "auto") {
    if (!device.gpu || capability < 70) return Precision::kFp32;
    return capability < 80 ? Precision::kFp16 : Precision::kBf16;
  }
  if (wanted == "fp32") return Precision::kFp32;
  if (wanted == "bf16") {
    if (!device.gpu || capability >= 80) return Precision::kBf16;
    return Refused(wanted, "needs sm_80, the worker has " + name + "; use auto, fp16 or fp32");
  }
  PS_CHECK(wanted == "fp16", wanted);
  if (device.gpu && capability >= 53) return Precision::kFp16;
  return Refused(wanted, device.gpu ? "needs sm_53, the worker has " + name + "; use auto or fp32"
                                    : "needs a GPU, the worker computes on " + name +
                                          ", whose kernels have no fp16; use auto, bf16 or fp32");
}

bool ScalesLoss(std::string_view mode, Precision precision) {
  return mode == "dynamic" || (mode == "auto" && precision == Precision::kFp16);
}

}  // namespace ps::worker
