"use strict";

// The map of the images, by the script that a page of one file has too.
{
  const caption = document.getElementById("map-caption");
  sightline.load("map").then(data => {
    const sheets = data.sheets.map(sightline.url);
    showMap({ ...data, sheets, folder: sightline.url("images/") });
    caption.textContent = data.description;
  }, () => { caption.textContent = "The map can't be loaded."; });
}
