// The format of a picture, by its bytes and not its name; and large photos are shrunk before they are uploaded.

/**
 * @typedef {{mime_type: string, ending: string, isShownEverywhere: boolean}} Format
 */

const LONGEST_SIDE = 2048; // the model looks at 336 pixels; this still looks sharp at window size
const JPEG_QUALITY = 0.92;

/** @type {Format[]} */
const [JPEG, PNG, GIF, WEBP, BMP, AVIF, HEIC, TIFF] = [
  ["image/jpeg", "jpg", true],
  ["image/png", "png", true],
  ["image/gif", "gif", true],
  ["image/webp", "webp", true],
  ["image/bmp", "bmp", true],
  ["image/avif", "avif", true],
  ["image/heic", "heic", false],
  ["image/tiff", "tiff", false],
].map(([mime_type, ending, isShownEverywhere]) => ({ mime_type, ending, isShownEverywhere }));

/**
 * @param {Blob} file
 * @returns {Promise<Format | null>} null: by its first bytes, no format that a browser or our server decodes
 */
async function formatOf(file) {
  const bytes = new Uint8Array(await file.slice(0, 16).arrayBuffer());
  const text = String.fromCharCode(...bytes);
  if (text.startsWith("\xff\xd8\xff")) return JPEG;
  if (text.startsWith("\x89PNG\r\n\x1a\n")) return PNG;
  if (/^GIF8[79]a/.test(text)) return GIF;
  if (/^RIFF.{4}WEBP/s.test(text)) return WEBP;
  if (text.startsWith("BM")) return BMP;
  if (/^.{4}ftypavi[fs]/s.test(text)) return AVIF;
  if (/^.{4}ftyp(hei|hev|mif1|msf1)/s.test(text)) return HEIC;
  if (text.startsWith("II*\0") || text.startsWith("MM\0*")) return TIFF;
  return null;
}

/**
 * The file to upload: with the extension of its format, and shrunk (and then turned upright) if it is large.
 *
 * @param {File} file
 * @param {number} maxBytes
 * @returns {Promise<File>}
 */
export async function prepared(file, maxBytes) {
  const format = await formatOf(file);
  if (!format) return file; // the server refuses it with a message
  const small = await shrunk(file, format, maxBytes);
  const stem = file.name.replace(/\.[^.]*$/, "") || "picture";
  const { mime_type: type, ending } = small ? JPEG : format;
  return new File([small ?? file], `${stem}.${ending}`, { type });
}

/**
 * @param {File} file
 * @param {Format} format
 * @param {number} maxBytes
 * @returns {Promise<Blob | null>} a JPEG; null: it is small enough, or this browser cannot decode it
 */
async function shrunk(file, format, maxBytes) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // turned upright as its EXIF says
  } catch {
    return null;
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const isFine = scale === 1 && format.isShownEverywhere && file.size <= maxBytes;
  const blob = isFine ? null : await jpegOf(bitmap, Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  bitmap.close();
  return blob;
}

/**
 * @param {CanvasImageSource} picture
 * @param {number} width
 * @param {number} height
 * @returns {Promise<Blob | null>}
 */
export function jpegOf(picture, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width: Math.max(1, width), height: Math.max(1, height) });
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as the server does with transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY));
}
