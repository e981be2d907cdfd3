// Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
// Pictures from files and from the camera, as pixels. Errors are sentences for the visitor.

const MEGABYTES = 30;
const MEGAPIXELS = 50;
const MOST_ELONGATED = 200; // resizing the short side of a wider strip would need gigabytes

/** The ImageData of a file, upright, in the colours that are stored. */
export async function decode(blob, name) {
  if (blob.size > MEGABYTES * 1e6) {
    throw new Error(`${name} has ${Math.round(blob.size / 1e6)} MB. This page shows pictures of up to ${MEGABYTES} MB.`);
  }
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => null);
  if (!bitmap) throw new Error(`${name} is damaged, or not a picture that this browser can read. Give a JPEG, PNG or WebP file.`);
  const { width, height } = bitmap;
  if (width * height > MEGAPIXELS * 1e6) {
    throw new Error(`${name} has ${width} x ${height} pixels. This page shows pictures of up to ${MEGAPIXELS} megapixels.`);
  }
  if (Math.max(width, height) > MOST_ELONGATED * Math.min(width, height)) {
    throw new Error(`${name} has ${width} x ${height} pixels, which is too narrow. Crop it.`);
  }
  return pixelsOf(bitmap, width, height);
}

/** The ImageData of what the camera shows now. */
export function frame(video) {
  return pixelsOf(video, video.videoWidth, video.videoHeight);
}

/** Shows the camera in `video`. Throws an Error that says why there is none. */
export async function startCamera(video) {
  if (!navigator.mediaDevices) throw new Error("This browser gives the camera to pages of https and of this computer only.");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play();
  } catch (error) {
    stopCamera(video);
    throw new Error(error.name === "NotAllowedError" ? "The camera was not allowed. Allow it in the browser, or drop a picture." : "No camera was found. Drop a picture instead.");
  }
}

export function stopCamera(video) {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

/** The centre of a picture on a square canvas: the part that the backbone sees. */
export function show(canvas, image, { resize, crop }) {
  const side = (Math.min(image.width, image.height) * crop) / resize;
  const whole = new OffscreenCanvas(image.width, image.height);
  whole.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = side > canvas.width;
  context.drawImage(whole, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
}

function pixelsOf(source, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  return context.getImageData(0, 0, width, height);
}
