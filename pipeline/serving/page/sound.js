/** Samples of a recording: decoding, peaks, mel spectrogram, and WAV. */

const PEAK_SAMPLES = 256;
const MEL_ROWS = 96;
const RANGE_DB = 75;
const QUIETEST_DB = -50; // a silent recording is drawn dark, not as amplified noise

/** Mono samples at one rate that begin at a time, with peaks of blocks so that hours are drawn quickly. */
export class Sound {
  constructor(samples, rateHz, startS = 0) {
    this.samples = samples;
    this.rateHz = rateHz;
    this.startS = startS;
    this.lengthS = samples.length / rateHz;
    this.peaks = blockPeaks(samples);
    this.loudest = this.peaks.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  }

  /** Decode a file with the browser; it rejects formats that the browser does not know. */
  static async decode(file, rateHz) {
    const context = new OfflineAudioContext(1, 1, rateHz); // it resamples, too
    const buffer = await context.decodeAudioData(await file.arrayBuffer());
    const mono = new Float32Array(buffer.length);
    for (let channel = 0; channel < buffer.numberOfChannels; channel += 1) {
      const samples = buffer.getChannelData(channel);
      for (let n = 0; n < mono.length; n += 1) mono[n] += samples[n] / buffer.numberOfChannels;
    }
    return new Sound(mono, rateHz);
  }

  /** Return the lowest and the highest sample between two samples. */
  range(first, after) {
    const blocks = after - first > 2 * PEAK_SAMPLES;
    const source = blocks ? this.peaks : this.samples;
    const scale = blocks ? 2 / PEAK_SAMPLES : 1;
    const end = Math.min(source.length, Math.max(Math.ceil(after * scale), Math.floor(first * scale) + 1));
    let [low, high] = [0, 0];
    for (let n = Math.max(0, Math.floor(first * scale)); n < end; n += 1) {
      if (source[n] < low) low = source[n];
      if (source[n] > high) high = source[n];
    }
    return [low, high];
  }
}

/** Return lowest and highest sample of each block, one after the other. */
function blockPeaks(samples) {
  const peaks = new Float32Array(2 * Math.ceil(samples.length / PEAK_SAMPLES));
  for (let n = 0; n < samples.length; n += 1) {
    const place = 2 * Math.floor(n / PEAK_SAMPLES);
    if (samples[n] < peaks[place]) peaks[place] = samples[n];
    if (samples[n] > peaks[place + 1]) peaks[place + 1] = samples[n];
  }
  return peaks;
}

/**
 * Return a log-mel spectrogram of a part of the sound, values from 0 to 1, `[columns][rows]`, low frequencies first.
 *
 * @param {Sound} sound samples
 * @param {number} fromS beginning of the part
 * @param {number} toS end of the part
 * @param {number} columns number of columns
 */
export function spectrogram(sound, fromS, toS, columns) {
  const size = sound.rateHz > 24000 ? 2048 : 1024;
  const transform = new Fourier(size);
  const edges = melEdges(sound.rateHz, size);
  const image = new Float32Array(columns * MEL_ROWS);
  const step = ((toS - fromS) * sound.rateHz) / columns;
  const looks = Math.min(3, Math.max(1, Math.round(step / size))); // frames that a wide column averages
  let loudest = QUIETEST_DB;
  for (let column = 0; column < columns; column += 1) {
    const power = new Float32Array(MEL_ROWS);
    for (let look = 0; look < looks; look += 1) {
      const centre = (fromS - sound.startS) * sound.rateHz + step * (column + (look + 0.5) / looks);
      addMelPower(power, transform.power(sound.samples, Math.round(centre - size / 2)), edges, 1 / looks);
    }
    for (let row = 0; row < MEL_ROWS; row += 1) {
      const level = 10 * Math.log10(power[row] + 1e-12);
      image[column * MEL_ROWS + row] = level;
      if (level > loudest) loudest = level;
    }
  }
  for (let n = 0; n < image.length; n += 1) image[n] = Math.max(0, 1 + (image[n] - loudest) / RANGE_DB);
  return { image, columns, rows: MEL_ROWS };
}

/** Return the bins of the transform at which the mel rows begin and end. */
function melEdges(rateHz, size) {
  const toMel = (hz) => 1127 * Math.log1p(hz / 700);
  const [low, high] = [toMel(20), toMel(rateHz / 2)];
  return Array.from({ length: MEL_ROWS + 2 }, (_, row) => {
    const hz = 700 * Math.expm1((low + ((high - low) * row) / (MEL_ROWS + 1)) / 1127);
    return (hz * size) / rateHz;
  });
}

function addMelPower(power, bins, edges, share) {
  for (let row = 0; row < power.length; row += 1) {
    const [low, centre, high] = [edges[row], edges[row + 1], edges[row + 2]];
    let [sum, weights] = [0, 0];
    for (let bin = Math.ceil(low); bin <= high && bin < bins.length; bin += 1) {
      const weight = bin <= centre ? (bin - low) / (centre - low) : (high - bin) / (high - centre);
      sum += weight * bins[bin];
      weights += weight;
    }
    const below = Math.min(bins.length - 2, Math.floor(centre)); // a row that is narrower than a bin
    const part = centre - below;
    power[row] += share * (weights > 0.5 ? sum / weights : bins[below] * (1 - part) + bins[below + 1] * part);
  }
}

/** Power spectrum of real samples: Hann window and a transform of base 2. */
class Fourier {
  constructor(size) {
    this.size = size;
    const at = (n) => (2 * Math.PI * n) / size;
    this.hann = Float32Array.from({ length: size }, (_, n) => (0.5 - 0.5 * Math.cos(at(n))) * (4 / size));
    this.cos = Float32Array.from({ length: size / 2 }, (_, n) => Math.cos(at(n)));
    this.sin = Float32Array.from({ length: size / 2 }, (_, n) => Math.sin(at(n)));
    const bits = Math.log2(size);
    this.order = Uint32Array.from({ length: size }, (_, n) => parseInt(n.toString(2).padStart(bits, "0").split("").reverse().join(""), 2));
    this.real = new Float32Array(size);
    this.imaginary = new Float32Array(size);
  }

  power(samples, start) {
    const { size, real, imaginary, cos, sin } = this;
    for (let n = 0; n < size; n += 1) {
      const place = start + n;
      real[this.order[n]] = place >= 0 && place < samples.length ? samples[place] * this.hann[n] : 0;
    }
    imaginary.fill(0);
    for (let half = 1; half < size; half *= 2) {
      const stride = size / (2 * half);
      for (let block = 0; block < size; block += 2 * half) {
        for (let n = 0; n < half; n += 1) {
          const one = block + n;
          const two = one + half;
          const turn = n * stride;
          const re = real[two] * cos[turn] + imaginary[two] * sin[turn];
          const im = imaginary[two] * cos[turn] - real[two] * sin[turn];
          real[two] = real[one] - re;
          imaginary[two] = imaginary[one] - im;
          real[one] += re;
          imaginary[one] += im;
        }
      }
    }
    return Float32Array.from({ length: size / 2 + 1 }, (_, n) => real[n] ** 2 + imaginary[n] ** 2);
  }
}

/** Return 16-bit samples as a WAV file. */
export function toWav(chunks, rateHz) {
  const bytes = chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const write = (place, text) => [...text].forEach((letter, n) => header.setUint8(place + n, letter.charCodeAt(0)));
  write(0, "RIFF");
  header.setUint32(4, 36 + bytes, true);
  write(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, rateHz, true);
  header.setUint32(28, 2 * rateHz, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  write(36, "data");
  header.setUint32(40, bytes, true);
  return new Blob([header, ...chunks], { type: "audio/wav" });
}
