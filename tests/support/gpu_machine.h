// Recorded machines with GPUs (gpu_machines/*.txt): the matrix of `nvidia-smi topo -m`, below what
// it does not say.
//
//   compute 7.0            capability of the GPUs
//   nvlink direct          or `switch`: NVLinks lead to switches; or `none`
//   	GPU0	GPU1 ...
//   GPU0	X	NV1 ...     X, NVn, PIX, PXB, PHB, NODE or SYS
#pragma once

#include <cstddef>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ps::test {

struct GpuMachine {
  int major = 0;
  int minor = 0;
  bool switched = false;
  std::vector<std::vector<std::string>> links;  // "NV2"

  std::size_t count() const { return links.size(); }
  // NVLinks between two; 0: none.
  int NvLinks(std::size_t a, std::size_t b) const {
    return links[a][b].compare(0, 2, "NV") == 0 ? std::stoi(links[a][b].substr(2)) : 0;
  }

  // Throws what is wrong with the file.
  static GpuMachine Read(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error(path + ": cannot be opened");
    GpuMachine machine;
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::string first;
      if (!(words >> first) || first == "#") continue;
      std::string word;
      if (first == "compute" && words >> word) {
        machine.major = std::stoi(word);
        machine.minor = std::stoi(word.substr(word.find('.') + 1));
      } else if (first == "nvlink" && words >> word) {
        machine.switched = word == "switch";
      } else if (first.compare(0, 3, "GPU") == 0 && line[0] == 'G') {
        std::vector<std::string>& row = machine.links.emplace_back();
        while (words >> word) row.push_back(word);
      }
    }
    for (std::size_t a = 0; a < machine.count(); ++a) {
      if (machine.links[a].size() != machine.count()) {
        throw std::runtime_error(path + ": row " + std::to_string(a) + " is not as long as all");
      }
      for (std::size_t b = 0; b < machine.count(); ++b) {
        if (machine.links[a][b] != machine.links[b][a] ||
            (machine.links[a][b] == "X") != (a == b)) {
          throw std::runtime_error(path + ": is not symmetric in row " + std::to_string(a));
        }
      }
    }
    if (machine.count() == 0) throw std::runtime_error(path + ": has no GPUs");
    return machine;
  }
};

}  // namespace ps::test
