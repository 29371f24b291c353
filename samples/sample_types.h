// What the samples add to a registry: the one list of their models and data sets.
#pragma once

namespace castor::strategy {
class Registry;
}  // namespace castor::strategy

namespace castor::samples {

/// Adds the models Gpt, MlpClassifier, LeNet and ResNet and the data sets ByteText and FashionMNIST. Call once.
void add_samples(strategy::Registry& registry);

}  // namespace castor::samples
