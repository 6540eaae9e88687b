// Moves values between the replicas of a model (replicated_model.h), each of which has a device of
// its own.
//
// A replica's number is its rank. What is asked for comes after everything that is enqueued on the
// default streams of the devices, and before what is enqueued there next: nobody need wait for it.
// In one call all ranks have equally many values.
//
// One thread. An error is of a device or of what joins them, and ends the task.
#pragma once

#include <span>

#include "common/result.h"

namespace ps::worker {

class Collective {
 public:
  virtual ~Collective() = default;

  // All ranks get the values of rank 0.
  virtual Status Broadcast(std::span<const std::span<float>> values) = 0;
  // `sum`, of rank 0, gets the sum of all ranks' values; it may be the memory of those of rank 0.
  virtual Status Sum(std::span<const std::span<const float>> values, std::span<float> sum) = 0;
};

// Where the memory of all is the host's.
class HostCollective final : public Collective {
 public:
  Status Broadcast(std::span<const std::span<float>> values) override;
  Status Sum(std::span<const std::span<const float>> values, std::span<float> sum) override;
};

}  // namespace ps::worker
