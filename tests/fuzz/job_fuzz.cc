// A job file from a stranger. What is accepted must say so again after it was stored.
#include <cstdint>
#include <string>

#include "common/check.h"
#include "common/job/job_spec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  (void)ps::ParseJobJson(text);
  const auto spec = ps::ParseJobYaml(text, "job.yaml", "/data");
  if (!spec.ok()) return 0;
  (void)ps::JobWarnings(spec.value());
  const std::string stored = ps::ResolvedJson(spec.value());
  const auto again = ps::ParseJobJson(stored);
  PS_CHECK(again.ok(), again.ok() ? std::string() : again.error().message);
  PS_CHECK(ps::ResolvedJson(again.value()) == stored, stored);
  const auto yaml = ps::ParseJobYaml(ps::ResolvedYaml(spec.value()), "again.yaml", "/");
  PS_CHECK(yaml.ok() && ps::ResolvedJson(yaml.value()) == stored, stored);
  return 0;
}
