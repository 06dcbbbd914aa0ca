"""The state of the random number generators, which initialization and dropout use.

Each device has a seed and a counter of the numbers generated so far, as low and high 32 bits.
tinygrad has no public function for them, so this file contains every use of its attributes.
minigrad has one generator, with a seed and the number of draws so far.
"""

from collections.abc import Sequence

from tinygrad import Device, Tensor, dtypes

from tinyformer.backend import is_minigrad


def create_generators(devices: Sequence[str] = ()) -> None:
  """Create the generators of some devices, or of the default device, if they do not exist.

  A generator that is created while a step is traced would be created again in each step.
  """
  if is_minigrad():
    return
  for device in devices or (Device.DEFAULT,):
    Tensor._next_counter(Device.canonicalize(device), 0)


def generators() -> list[Tensor]:
  """Return the seeds and counters of all devices.

  They must be realized too, with the tensors that they initialize or later.
  """
  return [] if is_minigrad() else [*Tensor._device_seeds.values(), *counters()]


def counters() -> list[Tensor]:
  """Return the counters of all devices. A step that generates numbers must realize them."""
  return list(Tensor._device_rng_counters.values())


def get_rng_state() -> dict[str, list[int]]:
  """Return the counter of each device, as low and high 32 bits; for minigrad, seed and draws."""
  if is_minigrad():
    from minigrad import random

    return {Device.DEFAULT: [random.state["seed"], random.state["draws"]]}
  return {device: count.numpy().tolist() for device, count in Tensor._device_rng_counters.items()}


def set_rng_state(state: dict[str, list[int]]) -> None:
  """Set the counter of each device to a value that `get_rng_state` returned.

  The counters are assigned in place, because compiled steps read them. Raises ValueError for a
  device that has no generator in this process.
  """
  generators = [Device.DEFAULT] if is_minigrad() else Tensor._device_rng_counters
  for device, count in state.items():
    if device not in generators:
      raise ValueError(f"the random numbers were generated on {device}: use the same device")
    if is_minigrad():
      from minigrad import random

      random.state.update(seed=count[0], draws=count[1])
      return
    counter = Tensor(count, dtype=dtypes.uint32, device=device)
    Tensor._device_rng_counters[device].assign(counter).realize()
