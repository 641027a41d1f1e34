"""Train a small pre-decoder, then let sinter compare it with plain matching on a circuit.

Run it with ``OMP_NUM_THREADS=1 python examples/surface_predecoder_with_sinter.py``; it takes about ten seconds.
"""

from __future__ import annotations

import sinter

from heliograph.graphs import PreDecoder, SurfaceMemory


def main(training_shots: int = 4_000, shots: int = 4_000) -> dict[str, float]:
    network = PreDecoder(filters=(24, 24))
    network.fit(SurfaceMemory(distance=5, noise=0.006), shots=training_shots, batch=32, learning_rate=3e-3, seed=0)
    task = sinter.Task(circuit=SurfaceMemory(distance=5, noise=0.004).circuit, json_metadata={"d": 5, "p": 0.004})
    found = sinter.collect(
        num_workers=1,
        tasks=[task],
        decoders=["predecoder", "pymatching"],
        custom_decoders={"predecoder": network.pipeline()},
        max_shots=shots,
    )
    rates = {stats.decoder: stats.errors / stats.shots for stats in found}
    for decoder, rate in sorted(rates.items()):
        print(f"{decoder:>12}: logical error rate {rate:.4f} in {shots} shots")
    return rates


if __name__ == "__main__":  # sinter starts workers that import this file
    main()
