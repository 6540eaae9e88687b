#include "ps-worker/engine/nccl_collective.h"

#include <numeric>
#include <string>
#include <utility>

#include "common/check.h"
#include "ps-worker/cuda/runtime.h"

namespace ps::worker {
namespace {

Status CheckedNccl(ncclResult_t result, const char* what) {
  if (result == ncclSuccess) return Ok();
  const std::string more = ncclGetLastError(nullptr);
  return Error{ErrorCode::kInternal, std::string("NCCL: ") + what + ": " +
                                         ncclGetErrorString(result) +
                                         (more.empty() ? "" : ", " + more)};
}

// The device that was current is so again.
class DeviceGuard {
 public:
  DeviceGuard() { (void)cudaGetDevice(&device_); }
  ~DeviceGuard() { (void)cudaSetDevice(device_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_ = 0;
};

// What is called in between begins together.
template <typename Call>
Status InGroup(std::size_t ranks, const char* what, Call call) {
  PS_TRY(CheckedNccl(ncclGroupStart(), what));
  Status status = Ok();
  for (std::size_t rank = 0; rank < ranks && status.ok(); ++rank) {
    status = CheckedNccl(call(rank), what);
  }
  const ncclResult_t ended = ncclGroupEnd();
  PS_TRY(status);
  return CheckedNccl(ended, what);
}

}  // namespace

Result<std::unique_ptr<Collective>> NcclCollective::Create(std::size_t ranks) {
  std::unique_ptr<NcclCollective> made(new NcclCollective());
  PS_TRY(made->Open(ranks));
  return std::unique_ptr<Collective>(std::move(made));
}

Status NcclCollective::Open(std::size_t ranks) {
  PS_CHECK(ranks > 0, ranks);
  const DeviceGuard guard;
  std::vector<int> devices(ranks);
  std::iota(devices.begin(), devices.end(), 0);
  ranks_.resize(ranks);
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    PS_TRY(cuda::Checked(cudaSetDevice(devices[rank]), "choosing a device"));
    PS_TRY(cuda::Checked(cudaStreamCreate(&ranks_[rank].stream), "making a stream"));
  }
  std::vector<ncclComm_t> communicators(ranks);
  PS_TRY(CheckedNccl(ncclCommInitAll(communicators.data(), static_cast<int>(ranks), devices.data()),
                     "joining the GPUs of the task"));
  for (std::size_t rank = 0; rank < ranks; ++rank) ranks_[rank].communicator = communicators[rank];
  return Ok();
}

NcclCollective::~NcclCollective() {
  const DeviceGuard guard;
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    (void)cudaSetDevice(static_cast<int>(rank));
    if (ranks_[rank].communicator != nullptr) (void)ncclCommDestroy(ranks_[rank].communicator);
    if (ranks_[rank].stream != nullptr) (void)cudaStreamDestroy(ranks_[rank].stream);
  }
}

Status NcclCollective::Broadcast(std::span<const std::span<float>> values) {
  PS_CHECK(values.size() == ranks_.size(), values.size(), ranks_.size());
  return InGroup(
      values.size(), "sending parameters to the GPUs of the task", [&](std::size_t rank) {
        return ncclBroadcast(values[0].data(), values[rank].data(), values[rank].size(), ncclFloat,
                             /*root=*/0, ranks_[rank].communicator, ranks_[rank].stream);
      });
}

Status NcclCollective::Sum(std::span<const std::span<const float>> values, std::span<float> sum) {
  PS_CHECK(values.size() == ranks_.size(), values.size(), ranks_.size());
  return InGroup(values.size(), "summing up the gradients of the GPUs", [&](std::size_t rank) {
    return ncclReduce(values[rank].data(), rank == 0 ? sum.data() : nullptr, values[rank].size(),
                      ncclFloat, ncclSum, /*root=*/0, ranks_[rank].communicator,
                      ranks_[rank].stream);
  });
}

}  // namespace ps::worker
