/** Collect the samples of the microphone into 16-bit chunks of a tenth of a second. */
class PcmProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.chunk = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
  }

  process([input]) {
    for (const sample of input[0] ?? []) {
      this.chunk[this.filled] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
      this.filled += 1;
      if (this.filled === this.chunk.length) {
        this.port.postMessage(this.chunk.buffer, [this.chunk.buffer]);
        this.chunk = new Int16Array(Math.round(sampleRate / 10));
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("pcm", PcmProcessor);
