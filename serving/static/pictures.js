// Pictures as numbers: {side, rgb: Float32Array of side * side * 3 values in 0..255, known: Uint8Array of side * side}.

function canvasOf(side) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  return canvas;
}

// A PNG file in base64.
export async function decode(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), options);
  const context = canvasOf(bitmap.width).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const picture = empty(bitmap.width);
  for (let pixel = 0; pixel < picture.known.length; pixel++) {
    for (let c = 0; c < 3; c++) picture.rgb[3 * pixel + c] = data[4 * pixel + c];
    picture.known[pixel] = data[4 * pixel + 3] > 127 ? 1 : 0;
  }
  return picture;
}

// Black, and nothing of it known.
export function empty(side) {
  return { side, rgb: new Float32Array(3 * side * side), known: new Uint8Array(side * side) };
}

export function copy(picture) {
  return { side: picture.side, rgb: picture.rgb.slice(), known: picture.known.slice() };
}

// A canvas of one pixel for each of the picture's.
export function drawn(picture) {
  const canvas = canvasOf(picture.side), context = canvas.getContext("2d");
  const image = context.createImageData(picture.side, picture.side);
  for (let pixel = 0; pixel < picture.known.length; pixel++) {
    for (let c = 0; c < 3; c++) image.data[4 * pixel + c] = picture.rgb[3 * pixel + c];
    image.data[4 * pixel + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

export function urlOf(picture) {
  return drawn(picture).toDataURL("image/png");
}

// White where the picture is known.
export function maskUrl(picture) {
  const mask = empty(picture.side);
  for (let value = 0; value < mask.rgb.length; value++) mask.rgb[value] = 255 * picture.known[Math.floor(value / 3)];
  return urlOf(mask);
}

export function mean(pictures) {
  const found = empty(pictures[0].side);
  for (const { rgb } of pictures) rgb.forEach((value, at) => { found.rgb[at] += value / pictures.length; });
  return found;
}

// Of each pixel the root of the mean squared difference from another picture, over channels and pictures, in 0..1.
export function distance(pictures, other) {
  const found = new Float32Array(other.known.length);
  for (const { rgb } of pictures) {
    rgb.forEach((value, at) => {
      found[Math.floor(at / 3)] += ((value - other.rgb[at]) / 255) ** 2 / 3 / pictures.length;
    });
  }
  return found.map(Math.sqrt);
}

// The standard deviation of each pixel over the pictures.
export function spread(pictures) {
  return distance(pictures, mean(pictures));
}

// From black through red and yellow to white, white at `most`.
export function heat(values, side, most) {
  const found = empty(side);
  values.forEach((value, pixel) => {
    const share = most ? value / most : 0;
    for (let c = 0; c < 3; c++) found.rgb[3 * pixel + c] = 255 * Math.min(1, Math.max(0, 3 * share - c));
  });
  return found;
}

// Mean squared error a pixel and channel, of values in 0..1, where `of` knows nothing; null where it knows all.
export function error(picture, truth, of) {
  let sum = 0, count = 0;
  for (let pixel = 0; pixel < of.known.length; pixel++) {
    if (of.known[pixel]) continue;
    for (let c = 0; c < 3; c++) sum += ((picture.rgb[3 * pixel + c] - truth.rgb[3 * pixel + c]) / 255) ** 2;
    count += 3;
  }
  return count ? sum / count : null;
}
